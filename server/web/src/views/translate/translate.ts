// Translation word by word over a source that is sent once, with the alignment growing.
import { html, nothing, render } from "lit-html";
import type { Api } from "../../api/api.ts";
import type { Shown } from "../../app/export.ts";
import type { Picture } from "../../drawing/picture.ts";
import { HeadsView } from "../heads/heads.ts";
import type { Context, View } from "../view.ts";
import { crossLayer, nextWord, Translation } from "./translation.ts";

/** More words than any translation has: to its end. */
const END = 999;
const PAUSE = 350; // milliseconds between words

export class TranslateView implements View {
  readonly element = document.createElement("section");
  private readonly heads = new HeadsView(() => undefined);
  private translation: Translation | null = null;
  private asked = "";

  constructor(private readonly api: Api) {
    this.element.className = "translate";
  }

  async load(context: Context, signal: AbortSignal): Promise<void> {
    const { model, state, layer } = context;
    if (!nextWord(model)) {
      this.translation = null;
      return;
    }
    const { said } = state;
    const cross = crossLayer(model, layer);
    const { memoryText, hidden, off, temperature } = state.a;
    const asked = JSON.stringify([model.name, model.version, cross.name, memoryText, hidden, off, temperature]);
    let translation = this.translation;
    if (!translation || asked !== this.asked) translation = new Translation(this.api, model, state.a, cross);
    else if (said < translation.steps.length) translation.backTo(said);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    while (memoryText && translation.steps.length < said && !translation.ended) {
      await translation.next(signal);
      if (signal.aborted) return;
      this.take(translation, asked);
      this.draw(context);
      const more = translation.steps.length < said && !translation.ended;
      if (more && !still) await new Promise((resolve) => setTimeout(resolve, PAUSE));
      if (signal.aborted) return;
    }
    this.take(translation, asked);
    if (said !== translation.steps.length) context.settle({ said: translation.steps.length });
  }

  private take(translation: Translation, asked: string): void {
    if (asked !== this.asked) {
      const aligning = translation.model.manifest.training?.figures?.head;
      this.heads.state.heads = aligning === undefined ? [] : [aligning];
      this.heads.state.lock = null;
    }
    this.translation = translation;
    this.asked = asked;
  }

  show(context: Context): void {
    this.draw(context);
  }

  private draw({ state, change }: Context): void {
    const { translation } = this;
    if (!translation) {
      render(html`<p class="lead">No model that is served translates.</p>`, this.element);
      return;
    }
    const { steps, ended } = translation;
    const done = ended || !state.a.memoryText;
    const picture = translation.picture();
    render(
      html`
        <p class="lead">The decoder says one word after another. Before each it looks, by cross-attention, at the words of the
          sentence it translates, which the server keeps as a <b>memory</b>: projected once, asked again for each word.</p>
        <div class="turn">
          <button type="button" class="primary" ?disabled=${done} @click=${() => change({ said: steps.length + 1 })}>Next word</button>
          <button type="button" ?disabled=${done} @click=${() => change({ said: END })}>To the end</button>
          <button type="button" ?disabled=${!steps.length} @click=${() => change({ said: 0 })}>Start again</button>
        </div>
        <p class="spoken" role="status" aria-live="polite">${
          steps.length
            ? steps.map(
                (step) =>
                  html`<span class=${translation.ends(step) ? "mark" : "word"}>${step.label}<small>${step.probability.toFixed(2)}</small></span> `,
              )
            : html`<span class="quiet-text">Nothing said yet.</span>`
        }</p>
        ${picture ? this.heads.element : nothing}
      `,
      this.element,
    );
    if (picture) this.heads.show(picture, 0, null);
  }

  shown(): Shown | null {
    const picture = this.picture();
    if (!picture) return null;
    const { state, place } = this.heads;
    return { style: state.style, panels: this.heads.panelsShown(), heading: picture.title, place };
  }

  picture(): Picture | null {
    return this.translation?.picture() ?? null;
  }
}
