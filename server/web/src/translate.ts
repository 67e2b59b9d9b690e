// Translation word by word over a memory that is sent once, with the alignment growing.
import { html, nothing, render } from "lit-html";
import { type Api, ApiError, type Memory, type Model, type Tensor } from "./api.ts";
import { HeadsView } from "./heads.ts";
import type { Picture } from "./picture.ts";
import { range, Weights } from "./weights.ts";

interface Step {
  label: string;
  probability: number;
  /** [H][S] */
  weights: Float32Array[];
}

/** The predictor of the next word: it reads the last row, and one of its labels, in brackets, ends the text. */
export function nextWord(model: Model): string | null {
  const found = model.manifest.predictors?.find(({ rows, labels }) => rows === "ROWS_LAST" && labels?.some(isMark));
  return (model.manifest.text?.memory_front && found?.name) || null;
}

function isMark(label: string): boolean {
  return label.startsWith("[") && label.endsWith("]");
}

export class TranslateView {
  readonly element = document.createElement("section");
  readonly heads: HeadsView;
  picture: Picture | null = null;
  private model: Model | null = null;
  private text = "";
  private memory: Memory | null = null;
  private steps: Step[] = [];
  private tokens = 0;
  private busy = false;
  private problem = "";

  constructor(
    private readonly api: Api,
    private readonly changed: () => void,
  ) {
    this.element.className = "translate";
    this.heads = new HeadsView(() => undefined);
  }

  /** Begins anew where the text or the model is another. */
  show(model: Model, text: string): void {
    if (this.model?.name !== model.name || this.text !== text) {
      this.model = model;
      this.text = text;
      this.restart();
    } else this.update();
  }

  private restart(): void {
    this.memory = null;
    this.steps = [];
    this.tokens = 0;
    this.problem = "";
    const aligning = this.model?.manifest.training?.figures?.head;
    this.heads.state.heads = aligning === undefined ? [] : [aligning];
    this.heads.state.lock = null;
    this.update();
  }

  private get words(): string[] {
    return this.steps.map(({ label }) => label).filter((label) => !isMark(label));
  }

  private get ended(): boolean {
    const longest = this.model?.manifest.text?.max_tokens || 512;
    return this.steps.length > 0 && (isMark(this.steps.at(-1)!.label) || this.tokens > longest);
  }

  private async next(): Promise<void> {
    const model = this.model!;
    const text = this.text;
    this.memory ??= await this.api.createMemory(model, { memory_text: text });
    const body = { text: this.words.join(" "), memory: this.memory.id };
    const result = await this.api
      .attend(model, body, [{ name: "weights", rows: [-1] }, "predictions"])
      .catch((error) => {
        // A memory that the server has forgotten is sent again.
        if (!(error instanceof ApiError && error.status === 404)) throw error;
        this.memory = null;
        return null;
      });
    if (text !== this.text || model !== this.model) return;
    if (!result) return this.next();
    const said = result.predictions!.find(({ name }) => name === nextWord(model))!;
    const { shape, data } = result.outputs.weights as Tensor;
    const [heads, , keys] = shape;
    const weights = range(heads).map((head) => (data as Float32Array).slice(head * keys, (head + 1) * keys));
    this.steps.push({ label: said.label, probability: said.probability, weights });
    this.tokens = (result.tokens?.length ?? 0) + 1;
  }

  private async run(toTheEnd: boolean): Promise<void> {
    this.busy = true;
    this.problem = "";
    this.update();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    try {
      do {
        await this.next();
        this.update();
        if (toTheEnd && !this.ended && !still) await new Promise((resolve) => setTimeout(resolve, 350));
      } while (toTheEnd && !this.ended);
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this.busy = false;
    this.update();
  }

  private draw(): void {
    const said = this.steps;
    const keys = this.memory?.tokens ?? [];
    if (!said.length) {
      this.picture = null;
      return;
    }
    const heads = said[0].weights.length;
    const values = new Float32Array(heads * said.length * keys.length);
    for (const head of range(heads))
      said.forEach((step, i) => {
        values.set(step.weights[head], (head * said.length + i) * keys.length);
      });
    this.picture = {
      title: `${this.text} → ${this.words.join(" ")}`,
      model: this.model!.name,
      version: this.model!.version,
      queries: said.map(({ label }) => label),
      keys,
      toItself: false,
      layers: [{ name: "alignment", weights: Weights.whole([heads, said.length, keys.length], values) }],
      focus: null,
      predictions: [],
    };
  }

  private update(): void {
    this.draw();
    const { ended, busy } = this;
    render(
      html`
        <p class="lead">The decoder says one word after another. Before each it looks, by cross-attention, at the words of the
          sentence it translates, which the server keeps as a <b>memory</b>: projected once, asked again for each word.</p>
        <div class="turn">
          <button type="button" class="primary" ?disabled=${busy || ended || !this.text} @click=${() => this.run(false)}>Next word</button>
          <button type="button" ?disabled=${busy || ended || !this.text} @click=${() => this.run(true)}>To the end</button>
          <button type="button" ?disabled=${busy || !this.steps.length} @click=${() => this.restart()}>Start again</button>
        </div>
        ${this.problem ? html`<p class="problem" role="alert">${this.problem}</p>` : nothing}
        <p class="spoken" role="status" aria-live="polite">${
          this.steps.length
            ? this.steps.map(
                ({ label, probability }) =>
                  html`<span class=${isMark(label) ? "mark" : "word"}>${label}<small>${probability.toFixed(2)}</small></span> `,
              )
            : html`<span class="quiet-text">Nothing said yet.</span>`
        }</p>
        ${this.memory ? html`<p class="aside">memory <code>${this.memory.id}</code>, ${this.memory.tokens?.length ?? 0} positions</p>` : nothing}
        ${this.picture ? this.heads.element : nothing}
      `,
      this.element,
    );
    if (this.picture) this.heads.show(this.picture, 0, null);
    this.changed();
  }
}
