// A text that a decoder goes on with, token by token, behind a prefix that the server keeps.
import { range, Weights } from "../drawing/weights.ts";
import { type Input, isChanged } from "../state/state.ts";
import {
  type Api,
  ApiError,
  type Candidate,
  isCross,
  type Model,
  type OutputSpec,
  type Result,
  type Tensor,
  type TopK,
} from "./api.ts";
import { changes, rowsOf } from "./ask.ts";

const CANDIDATES = 5;
const LARGEST = 64; // weights of a row and head
const MOST_BYTES = 2e5; // of the largest weights of one token
const MOST_TOKENS = 512; // of a text, where the model names no bound

/** How tokens are chosen: the most probable one, or a draw at a temperature above 0. */
export interface Choice {
  temperature: number;
  seed: number;
}

/** One token that was written, with what its row read before. */
export interface Written {
  id: number;
  label: string;
  probability: number;
  top: Candidate[];
  /** Of each layer, the mean over its heads, [S]. */
  means: Float32Array[];
  /** Of each layer, [H, 1, S]; of a long text the largest. */
  heads: Weights[];
  /** Of each layer, the sums over the sentences of the prompt, [H][sentences]. */
  sums: Float32Array[][];
}

/** A range of tokens, the end behind it. */
export interface Sentence {
  begin: number;
  end: number;
}

/** The predictor of the next token of a model that goes on with a text; null where there is none. */
export function nextToken(model: Model): string | null {
  const { predictors = [], text } = model.manifest;
  if (isCross(model) || text?.start_token !== undefined) return null;
  return predictors.find(({ rows, vocabulary }) => rows === "ROWS_LAST" && vocabulary)?.name ?? null;
}

export class Generation {
  readonly written: Written[] = [];
  /** The tokens of the prompt, as the model reads them. */
  prompt: string[] = [];
  sentences: Sentence[] = [];
  private ids: number[] = [];
  private memory = "";

  constructor(
    private readonly api: Api,
    readonly model: Model,
    readonly input: Input,
    readonly choice: Choice,
  ) {}

  /** Whether no token follows the first `count`. */
  endsAt(count: number): boolean {
    const { end_tokens, max_tokens } = this.model.manifest.text ?? {};
    const last = this.written[count - 1];
    if (last && end_tokens?.includes(last.id)) return true;
    return this.ids.length > 0 && this.ids.length + count >= (max_tokens || MOST_TOKENS);
  }

  /** Asks for one more token. A prefix that the server has forgotten is sent again. */
  async next(signal: AbortSignal): Promise<void> {
    if (!this.ids.length) await this.begin();
    const { memory } = this;
    const last = this.written.at(-1);
    let result: Result;
    try {
      result = memory && last ? await this.ask({ token_ids: [last.id], memory }, signal) : await this.whole(signal);
    } catch (error) {
      if (!memory || !(error instanceof ApiError && error.status === 404)) throw error;
      result = await this.whole(signal);
    }
    if (signal.aborted) return;
    if (!this.prompt.length) this.prompt = result.tokens ?? [];
    this.memory = result.memory?.id ?? "";
    this.written.push(this.read(result));
  }

  private async begin(): Promise<void> {
    const { kind, ids, text, pair } = this.input;
    if (kind === "ids") {
      this.ids = ids; // named by the first answer
      return;
    }
    const { token_ids, tokens } = await this.api.tokenize(this.model, {
      text,
      ...(pair === null ? {} : { text_pair: pair }),
    });
    this.ids = token_ids;
    this.prompt = tokens;
    this.sentences = sentencesOf(tokens);
  }

  /** The prompt and all that was written. */
  private whole(signal: AbortSignal): Promise<Result> {
    return this.ask({ token_ids: [...this.ids, ...this.written.map(({ id }) => id)] }, signal);
  }

  private ask(sequence: object, signal: AbortSignal): Promise<Result> {
    const body = { ...sequence, ...changes(this.input, this.ids.length + this.written.length) };
    // A changed model keeps nothing: what it computes is not what the model would go on from.
    return this.api.attend(
      this.model,
      isChanged(this.input) ? body : { ...body, extend: true },
      this.outputs(),
      signal,
    );
  }

  private outputs(): OutputSpec[] {
    const { temperature, seed } = this.choice;
    const heads = this.model.manifest.layers.reduce((sum, each) => sum + each.heads, 0);
    const row = { name: "weights" as const, layers: ["*"], rows: [-1] };
    const spans = Object.fromEntries(this.sentences.map(({ begin, end }, at) => [String(at), { begin, end }]));
    const sample = temperature > 0 ? { sample: { temperature, seed: seed + this.written.length } } : {};
    return [
      { ...row, as: "heads", top_k: Math.max(1, Math.min(LARGEST, Math.floor(MOST_BYTES / (8 * heads)))) },
      { ...row, as: "mean", reduce: "mean" },
      ...(this.sentences.length ? [{ ...row, as: "sums", spans }] : []),
      { name: "predictions", top: CANDIDATES, ...sample },
    ];
  }

  private read({ outputs, predictions = [] }: Result): Written {
    const keys = this.ids.length + this.written.length;
    const said = predictions.filter(({ name }) => name === nextToken(this.model)).at(-1)!;
    const { layers } = this.model.manifest;
    const of = (as: string) => layers.map(({ name }) => outputs[layers.length > 1 ? `${as}@${name}` : as]);
    return {
      id: said.id,
      label: said.label,
      probability: said.probability,
      top: said.top ?? [],
      means: (of("mean") as Tensor[]).map(({ data }) => data as Float32Array),
      heads: (of("heads") as TopK[]).map(({ indices, values }) =>
        Weights.largest(values.shape, keys, indices.data, values.data as Float32Array),
      ),
      sums: this.sentences.length ? (of("sums") as Tensor[]).map(rowsOf) : [],
    };
  }
}

/** The sentences of a prompt of several; empty where it is one. */
function sentencesOf(tokens: string[]): Sentence[] {
  const ends = range(tokens.length).filter((at) => /[.!?]["'”’)]?$/.test(tokens[at].trim()) && at + 1 < tokens.length);
  if (!ends.length) return [];
  return [...ends.map((at) => at + 1), tokens.length].map((end, at) => ({ begin: at ? ends[at - 1] + 1 : 0, end }));
}
