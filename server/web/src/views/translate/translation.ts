// A translation word by word, over a source that is sent once.
import {
  type Api,
  ApiError,
  isCross,
  type Layer,
  type Memory,
  type Model,
  type OutputSpec,
  type Tensor,
} from "../../api/api.ts";
import { changes, sideOf } from "../../api/ask.ts";
import type { Picture } from "../../drawing/picture.ts";
import { range, Weights } from "../../drawing/weights.ts";
import type { Input } from "../../state/state.ts";

/** One word that the model said, with what it looked at before. */
export interface Step {
  id: number;
  label: string;
  probability: number;
  /** [H][S] */
  weights: Float32Array[];
}

/** The predictor of the next word of a model that reads a source; null where there is none. */
export function nextWord(model: Model): string | null {
  if (!isCross(model)) return null;
  const { predictors = [], text } = model.manifest;
  const ends = (labels: string[] | undefined) => labels?.some(isMark) || (text?.end_tokens?.length ?? 0) > 0;
  return predictors.find(({ rows, labels }) => rows === "ROWS_LAST" && ends(labels))?.name ?? null;
}

function isMark(label: string): boolean {
  return label.startsWith("[") && label.endsWith("]");
}

/** The layer whose look at the source is shown: the one chosen, where it is over the source, else the last that is. */
export function crossLayer(model: Model, layer: Layer): Layer {
  const over = model.manifest.layers.filter((each) => sideOf(each) === "SIDE_CROSS");
  return over.length ? (over.find(({ name }) => name === layer.name) ?? over.at(-1)!) : layer;
}

export class Translation {
  readonly steps: Step[] = [];
  memory: Memory | null = null;
  private tokens = 0;

  constructor(
    private readonly api: Api,
    readonly model: Model,
    readonly input: Input,
    readonly layer: Layer,
  ) {}

  get words(): string[] {
    return this.steps.filter((step) => !this.ends(step)).map(({ label }) => label);
  }

  get ended(): boolean {
    const longest = this.model.manifest.text?.max_tokens || 512;
    const last = this.steps.at(-1);
    return last !== undefined && (this.ends(last) || this.tokens > longest);
  }

  ends({ id, label }: Step): boolean {
    const { end_tokens } = this.model.manifest.text ?? {};
    return end_tokens?.length ? end_tokens.includes(id) : isMark(label);
  }

  /** Takes back what was said after some words. */
  backTo(count: number): void {
    this.steps.length = Math.min(count, this.steps.length);
    this.tokens = 0;
  }

  /** Asks for the next word; rejects where it was given up. A source that the server has forgotten is sent again. */
  async next(signal: AbortSignal): Promise<void> {
    const { model, input } = this;
    this.memory ??= await this.api.createMemory(model, { memory_text: input.memoryText });
    const specs: (OutputSpec | string)[] = [{ name: "weights", rows: [-1], layers: [this.layer.name] }, "predictions"];
    const body = { ...this.target(), memory: this.memory.id, ...changes(input, this.memory.tokens?.length ?? 0) };
    let result: Awaited<ReturnType<Api["attend"]>>;
    try {
      result = await this.api.attend(model, body, specs, signal);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
      this.memory = await this.api.createMemory(model, { memory_text: input.memoryText });
      result = await this.api.attend(model, { ...body, memory: this.memory.id }, specs, signal);
    }
    // An answer that was given up meanwhile is no word of what is said now.
    signal.throwIfAborted();
    const said = result.predictions!.filter(({ name }) => name === nextWord(model)).at(-1)!;
    const { shape, data } = result.outputs.weights as Tensor;
    const [heads, , keys] = shape;
    const weights = range(heads).map((head) => (data as Float32Array).slice(head * keys, (head + 1) * keys));
    this.steps.push({ id: said.id, label: said.label, probability: said.probability, weights });
    this.tokens = (result.tokens?.length ?? 0) + 1;
  }

  /** What was said so far, as the model reads it. */
  private target(): object {
    const { start_token } = this.model.manifest.text ?? {};
    if (start_token === undefined) return { text: this.words.join(" ") };
    return { token_ids: [start_token, ...this.steps.map(({ id }) => id)] };
  }

  /** The alignment so far: a row a word. */
  picture(): Picture | null {
    const { steps } = this;
    const keys = this.memory?.tokens ?? [];
    if (!steps.length) return null;
    const heads = steps[0].weights.length;
    const values = new Float32Array(heads * steps.length * keys.length);
    for (const head of range(heads))
      steps.forEach((step, i) => {
        values.set(step.weights[head], (head * steps.length + i) * keys.length);
      });
    return {
      title: `${this.input.memoryText} → ${this.words.join(" ")}`,
      model: this.model.name,
      version: this.model.version,
      queries: steps.map(({ label }) => label),
      keys,
      toItself: false,
      layers: [{ name: this.layer.name, weights: Weights.whole([heads, steps.length, keys.length], values) }],
      focus: null,
      predictions: [],
    };
  }
}
