// Translation word by word over a source that is sent once, with the alignment growing.
import { html, nothing, render } from "lit-html";
import type { Api } from "../../api/api.ts";
import type { Shown } from "../../app/export.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { toggled } from "../../state/state.ts";
import { HeadsView } from "../heads/heads.ts";
import type { Context, View } from "../view.ts";
import { Lines } from "./lines.ts";
import { crossLayer, nextWord, Translation } from "./translation.ts";

/** More words than any translation has: to its end. */
const END = 999;
const PAUSE = 350; // milliseconds between words

export class TranslateView implements View {
  readonly element = document.createElement("section");
  private readonly heads = new HeadsView(() => this.context && this.draw(this.context));
  private readonly lines = new Lines();
  private context: Context | null = null;
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
    this.context = context;
    this.draw(context);
  }

  private draw(context: Context): void {
    const { state, change } = context;
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
        <h2>Which words does each new word look at?</h2>
        <p class="lead">The decoder says one word after another. Before each it looks, by cross-attention, at the words of the
          sentence it translates, which the server keeps as a <b>memory</b>: projected once, asked again for each word.</p>
        <div class="turn">
          <button type="button" class="primary" ?disabled=${done} @click=${() => change({ said: steps.length + 1 })}>Next word</button>
          <button type="button" ?disabled=${done} @click=${() => change({ said: END })}>To the end</button>
          <button type="button" ?disabled=${!steps.length} @click=${() => change({ said: 0 })}>Start again</button>
        </div>
        ${this.lines.element}
        <p class="unseen" role="status" aria-live="polite">${translation.words.join(" ")}</p>
        ${picture ? this.heads.element : nothing}
      `,
      this.element,
    );
    this.showLines(context, translation);
    if (picture) this.heads.show(picture, 0, null);
  }

  private showLines({ state, change, edit }: Context, translation: Translation): void {
    const { steps } = translation;
    const chosen = state.query !== null && state.query < steps.length ? state.query : null;
    this.lines.show({
      keys: translation.memory?.tokens ?? (state.a.memoryText ? state.a.memoryText.split(/\s+/) : []),
      hidden: state.a.hidden,
      words: steps.map((step) => ({ label: step.label, probability: step.probability, ends: translation.ends(step) })),
      weights: steps.map(({ weights }) => this.shownWeights(weights)),
      chosen,
      hide: (key) => edit({ hidden: toggled(state.a.hidden, key) }),
      choose: (word) => change({ query: word === chosen ? null : word }),
    });
  }

  /** The mean over the heads that are shown. */
  private shownWeights(weights: Float32Array[]): Float32Array {
    const { heads } = this.heads.state;
    const shown = heads.length ? heads.map((head) => weights[head]) : weights;
    return shown[0].map((_, key) => shown.reduce((sum, row) => sum + row[key], 0) / shown.length);
  }

  shown(): Shown | null {
    const picture = this.picture();
    if (!picture) return null;
    const { state, place } = this.heads;
    return {
      style: state.style,
      panels: this.heads.panelsShown(),
      heading: picture.title,
      about: aboutPicture(picture, picture.layers[0].name),
      place,
    };
  }

  picture(): Picture | null {
    return this.translation?.picture() ?? null;
  }
}
