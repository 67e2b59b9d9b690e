// What the page asks the API for: no more than it shows.
import {
  type Api,
  encode,
  type Layer,
  type Model,
  type OutputSpec,
  type Result,
  type Tensor,
  type TopK,
} from "./api.ts";
import type { Matrix } from "./matrix.ts";
import { type Picture, type Prediction, positions } from "./picture.ts";
import { range, Weights } from "./weights.ts";

/** Up to here every weight is shown; above, the largest of each row. */
export const WHOLE = 64;
/** How many of a row, of long sequences. */
const LARGEST = 16;
/** How many keys a step shows. */
const STEP_KEYS = 12;

export type Causal = "none" | "top_left" | "bottom_right";

/** One sequence and the model that reads it. */
export interface Input {
  model: string;
  kind: "text" | "vectors";
  text: string;
  memoryText: string;
  query: Matrix | null;
  key: Matrix | null;
  value: Matrix | null;
  causal: Causal;
  /** Of the window, -1 is unbounded. */
  left: number;
  right: number;
}

export function isCross(model: Model): boolean {
  return model.manifest.block === "cross_attention";
}

/** What multiplies q.k. */
export function scaleOf(layer: Layer, width: number): number {
  return layer.scale || 1 / Math.sqrt(width);
}

/** Whether a query may attend to a key, as the contract's mask says. */
export function allowed(input: Input, query: number, key: number, queries: number, keys: number): boolean {
  const place = query + (input.causal === "bottom_right" ? keys - queries : 0);
  return (
    (input.causal === "none" || key <= place) &&
    (input.left < 0 || key >= place - input.left) &&
    (input.right < 0 || key <= place + input.right)
  );
}

/** The fields of a request's one sequence. */
export function sequence(input: Input, model: Model): object {
  const mask = { causal: input.causal, window: { left: input.left, right: input.right } };
  if (input.kind === "text")
    return { text: input.text, mask, ...(isCross(model) ? { memory_text: input.memoryText } : {}) };
  const tensors = Object.entries({ query: input.query, key: input.key, value: input.value }).flatMap(
    ([name, matrix]) => (matrix ? [[name, encode(matrix.data, [matrix.rows, matrix.columns])]] : []),
  );
  return { mask, ...Object.fromEntries(tensors) };
}

function title(input: Input): string {
  if (input.kind === "vectors") return `${input.query?.rows ?? 0} vectors`;
  return input.memoryText && input.text !== input.memoryText ? `${input.memoryText} → ${input.text}` : input.text;
}

async function isLong(api: Api, model: Model, input: Input, signal?: AbortSignal): Promise<boolean> {
  if (input.kind === "vectors") return Math.max(input.query?.rows ?? 0, input.key?.rows ?? 0) > WHOLE;
  if (Math.max(input.text.length, input.memoryText.length) <= 2 * WHOLE) return false;
  const { tokens, memory_tokens } = await api.attend(
    model,
    sequence(input, model),
    [{ name: "output", rows: [0] }],
    signal,
  );
  return Math.max(tokens?.length ?? 0, memory_tokens?.length ?? 0) > WHOLE;
}

/** Asks for the weights of some layers and what the model predicts. */
export async function askPicture(
  api: Api,
  model: Model,
  input: Input,
  layers: string[],
  signal?: AbortSignal,
): Promise<Picture> {
  const top_k = (await isLong(api, model, input, signal)) ? LARGEST : WHOLE;
  const specs: (OutputSpec | string)[] = layers.map((layer, i) => ({
    name: "weights",
    as: `w${i}`,
    layers: [layer],
    top_k,
  }));
  if (input.kind === "text" && model.manifest.predictors?.length) specs.push("predictions");
  const result = await api.attend(model, sequence(input, model), specs, signal);
  const tops = layers.map((_, i) => result.outputs[`w${i}`] as TopK);
  const T = tops[0].values.shape[1];
  const toItself = input.kind === "text" ? !isCross(model) : !input.key;
  const S = toItself ? T : (result.memory_tokens?.length ?? input.key?.rows ?? T);
  const predictions: Prediction[] = result.predictions ?? [];
  const rows = new Set(predictions.map(({ row }) => row));
  const queries = result.tokens ?? positions(T);
  return {
    title: title(input),
    model: model.name,
    version: model.version,
    queries,
    keys: toItself ? queries : (result.memory_tokens ?? positions(S)),
    toItself,
    layers: tops.map((top, i) => ({ name: layers[i], weights: read(top, S) })),
    focus: rows.size === 1 ? ([...rows][0] ?? null) : null,
    predictions,
  };
}

function read({ indices, values }: TopK, keys: number): Weights {
  return Weights.largest(values.shape, keys, indices.data, values.data as Float32Array);
}

/** Asks for the mean of some heads, where the page has the largest only. */
export async function askMean(
  api: Api,
  model: Model,
  input: Input,
  layer: string,
  heads: number[],
  keys: number,
): Promise<Weights> {
  const spec: OutputSpec = { name: "weights", reduce: "mean", heads, layers: [layer], top_k: LARGEST };
  const { outputs } = await api.attend(model, sequence(input, model), [spec]);
  return read(outputs.weights as TopK, keys);
}

/** Asks for one whole row of every head, [H, 1, S]. */
export async function askRow(api: Api, model: Model, input: Input, layer: string, query: number): Promise<Weights> {
  const spec: OutputSpec = { name: "weights", rows: [query], layers: [layer] };
  const { outputs } = await api.attend(model, sequence(input, model), [spec]);
  const { shape, data } = outputs.weights as Tensor;
  return Weights.whole(shape, data as Float32Array);
}

/** Every stage of one query position. */
export interface Stages {
  query: number;
  /** The keys shown, of S. */
  shown: number[];
  /** [H][Dh] */
  q: Float32Array[];
  /** [H][shown][Dh] */
  k: Float32Array[][];
  /** [H][shown][Dv] */
  v: Float32Array[][];
  /** [H][S], scaled, before the mask */
  scores: Float32Array[];
  /** [H][S] */
  weights: Float32Array[];
  /** [H][Dv] */
  heads: Float32Array[];
  /** [D] */
  output: Float32Array;
  predictions: Prediction[];
}

/** Asks for every stage of one query position, and the keys and values that weigh most for one head. */
export async function askStages(
  api: Api,
  model: Model,
  input: Input,
  layer: string,
  query: number,
  head: number,
  signal?: AbortSignal,
): Promise<Stages> {
  const rows = [query];
  const at = (name: string, rows: number[]): OutputSpec => ({ name, rows, layers: [layer] });
  const specs: (OutputSpec | string)[] = ["q", "scores", "weights", "heads", "output"].map((name) => at(name, rows));
  if (input.kind === "text" && model.manifest.predictors?.length) specs.push("predictions");
  const first = await api.attend(model, sequence(input, model), specs, signal);
  const weights = perHead(first, "weights");
  const shown = largest(weights[head], STEP_KEYS);
  const second = await api.attend(model, sequence(input, model), [at("k", shown), at("v", shown)], signal);
  return {
    query,
    shown,
    q: perHead(first, "q"),
    k: perHeadAndRow(second, "k"),
    v: perHeadAndRow(second, "v"),
    scores: perHead(first, "scores"),
    weights,
    heads: perHead(first, "heads"),
    output: (first.outputs.output as Tensor).data as Float32Array,
    predictions: first.predictions ?? [],
  };
}

/** The places of the largest, in order of place. */
function largest(row: Float32Array, count: number): number[] {
  return range(row.length)
    .sort((a, b) => row[b] - row[a] || a - b)
    .slice(0, count)
    .sort((a, b) => a - b);
}

function perHeadAndRow(result: Result, name: string): Float32Array[][] {
  const { shape, data } = result.outputs[name] as Tensor;
  const [heads, rows, width] = shape;
  const part = (at: number) => (data as Float32Array).subarray(at * width, (at + 1) * width);
  return range(heads).map((head) => range(rows).map((row) => part(head * rows + row)));
}

function perHead(result: Result, name: string): Float32Array[] {
  return perHeadAndRow(result, name).map(([row]) => row);
}
