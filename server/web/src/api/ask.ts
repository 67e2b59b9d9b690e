// What the page asks the API for: no more than it shows.

import type { Prediction } from "../drawing/picture.ts";
import { range, Weights } from "../drawing/weights.ts";
import type { Input } from "../state/state.ts";
import {
  encode,
  isCross,
  type Layer,
  type Model,
  type OutputSpec,
  type Result,
  type Tensor,
  type TopK,
} from "./api.ts";
import type { Known } from "./known.ts";

/** Up to here every weight is shown; above, the largest of each row. */
export const WHOLE = 64;
/** How many of a row, of long sequences. */
export const LARGEST = 16;
/** How many keys a step shows. */
const STEP_KEYS = 12;
/** Up to here a rollout is told after each layer. */
const MOST_ROLLED = 512;

/** The three kinds of sites of an encoder-decoder; a model of one sequence has targets alone. */
export type Side = "SIDE_TARGET" | "SIDE_SOURCE" | "SIDE_CROSS";

export function sideOf(layer: Layer): Side {
  return layer.side ?? "SIDE_TARGET";
}

/** The sites that share queries and keys with one of them. */
export function besides(model: Model, layer: Layer): Layer[] {
  return model.manifest.layers.filter((each) => sideOf(each) === sideOf(layer));
}

/** What multiplies q.k. */
export function scaleOf(layer: Layer, width: number): number {
  return layer.scale || 1 / Math.sqrt(width);
}

/** Whether a query may attend to a key, as the contract's mask and the site itself say. */
export function allowed(
  input: Input,
  query: number,
  key: number,
  queries: number,
  keys: number,
  causal = false,
): boolean {
  const place = query + (input.causal === "bottom_right" ? keys - queries : 0);
  return (
    (input.causal === "none" || key <= place) &&
    (!causal || key <= query) &&
    (input.left < 0 || key >= place - input.left) &&
    (input.right < 0 || key <= place + input.right) &&
    !input.hidden.includes(key)
  );
}

/** The fields of a request: its one sequence, and what is changed in the model. */
export function sequence(input: Input, model: Model, keys = 0): object {
  return { ...own(input, model), ...changes(input, keys) };
}

function own(input: Input, model: Model): object {
  const memory = isCross(model) ? { memory_text: input.memoryText } : {};
  if (input.kind === "ids") return { token_ids: input.ids, ...memory };
  if (input.kind === "text") {
    const pair = input.pair !== null && model.manifest.text?.takes_pairs ? { text_pair: input.pair } : {};
    return { text: input.text, ...pair, ...memory };
  }
  const matrices = Object.entries({ query: input.query, key: input.key, value: input.value });
  return Object.fromEntries(
    matrices.flatMap(([name, matrix]) => (matrix ? [[name, encode(matrix.data, [matrix.rows, matrix.columns])]] : [])),
  );
}

/** The fields that say what is masked or changed; `keys` is S. */
export function changes({ causal, left, right, hidden, off, temperature }: Input, keys: number): object {
  const mask: Record<string, unknown> = {};
  if (causal !== "none") mask.causal = causal;
  if (left >= 0 || right >= 0) mask.window = { left, right };
  const struck = hidden.filter((key) => key < keys);
  if (struck.length) mask.allowed = [range(keys).map((key) => !struck.includes(key))];
  const layers = [...new Set(off.map(layerOf))];
  const ablate = layers.map((layer) => ({
    layers: [layer],
    heads: off.filter((each) => layerOf(each) === layer).map(headOf),
  }));
  return {
    ...(Object.keys(mask).length ? { mask } : {}),
    ...(ablate.length ? { ablate } : {}),
    ...(temperature === 1 ? {} : { score_temperature: temperature }),
  };
}

/** The layer and the head of "layer.head", where the layer's own name may have dots. */
export function layerOf(pair: string): string {
  return pair.slice(0, pair.lastIndexOf("."));
}

export function headOf(pair: string): number {
  return Number(pair.slice(pair.lastIndexOf(".") + 1));
}

export function titleOf(input: Input): string {
  if (input.kind === "vectors") return `${input.query?.rows ?? 0} vectors`;
  const text = input.kind === "ids" ? `tokens ${input.ids.join(" ")}` : input.text;
  const whole = input.pair === null || input.kind === "ids" ? text : `${text} | ${input.pair}`;
  return input.memoryText && text !== input.memoryText ? `${input.memoryText} → ${whole}` : whole;
}

/** The rows of a matrix. */
export function rowsOf({ shape, data }: Tensor): Float32Array[] {
  const width = shape.at(-1)!;
  return range(data.length / width).map((row) => (data as Float32Array).subarray(row * width, (row + 1) * width));
}

export function read({ indices, values }: TopK, keys: number): Weights {
  return Weights.largest(values.shape, keys, indices.data, values.data as Float32Array);
}

/** Asks for the mean of some heads, where the page has the largest only. */
export async function askMean(
  known: Known,
  model: Model,
  input: Input,
  layer: string,
  heads: number[],
  keys: number,
): Promise<Weights> {
  const spec: OutputSpec = { name: "weights", reduce: "mean", heads, layers: [layer], top_k: LARGEST };
  const { outputs } = await known.attend(model, sequence(input, model, keys), [spec]);
  return read(outputs.weights as TopK, keys);
}

/** Asks for one whole row of every head, [H, 1, S]. */
export async function askRow(
  known: Known,
  model: Model,
  input: Input,
  layer: string,
  query: number,
  keys: number,
  signal?: AbortSignal,
): Promise<Weights> {
  const spec: OutputSpec = { name: "weights", rows: [query], layers: [layer] };
  const { outputs } = await known.attend(model, sequence(input, model, keys), [spec], signal);
  const { shape, data } = outputs.weights as Tensor;
  return Weights.whole(shape, data as Float32Array);
}

/** Rollout from one word: what it has read after each of some layers, [1, layers, S]. */
export interface Read {
  query: number;
  /** The layers after which it is told. */
  after: Layer[];
  weights: Weights;
}

/**
 * Asks for attention rollout from a word: of a short sequence for all words, so that another one asks nothing; of a long one,
 * where each layer is a product of matrices [T, T], after the last layer alone.
 */
export async function askRollout(
  known: Known,
  model: Model,
  input: Input,
  layers: Layer[],
  query: number,
  length: number,
  signal?: AbortSignal,
): Promise<Read> {
  const after = length > MOST_ROLLED ? layers.slice(-1) : layers;
  const rows = length > WHOLE ? { rows: [query] } : {};
  const specs = after.map((layer): OutputSpec => {
    const before = layers.slice(0, layers.indexOf(layer) + 1).map(({ name }) => name);
    return { name: "weights", as: `r${layers.indexOf(layer)}`, fold: "rollout", layers: before, ...rows };
  });
  const { outputs } = await known.attend(model, sequence(input, model, length), specs, signal);
  const values = new Float32Array(after.length * length);
  after.forEach((layer, at) => {
    const matrix = rowsOf(outputs[`r${layers.indexOf(layer)}`] as Tensor);
    values.set(matrix[length > WHOLE ? 0 : query], at * length);
  });
  return { query, after, weights: Weights.whole([1, after.length, length], values) };
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
  /** [D]; empty where the layer does not give it */
  output: Float32Array;
  predictions: Prediction[];
}

/**
 * Asks for every stage of one query position. Of a short sequence all positions are asked for at once, so that another
 * query or head asks nothing; of a long one this row, and the keys and values that weigh most for the head.
 */
export async function askStages(
  known: Known,
  model: Model,
  input: Input,
  layer: Layer,
  query: number,
  head: number,
  sizes: [number, number],
  signal?: AbortSignal,
): Promise<Stages> {
  const [T, S] = sizes;
  const short = Math.max(T, S) <= WHOLE;
  const at = (name: OutputSpec["name"], rows: number[]): OutputSpec => ({
    name,
    layers: [layer.name],
    ...(short ? {} : { rows }),
  });
  const combined = layer.stages?.includes("output") ? (["output"] as const) : [];
  const names = ["q", "scores", "weights", "heads", ...combined] as const;
  const specs: (OutputSpec | string)[] = names.map((name) => at(name, [query]));
  if (short) specs.push(at("k", []), at("v", []));
  if (input.kind !== "vectors" && model.manifest.predictors?.length) specs.push("predictions");
  const body = sequence(input, model, S);
  const first = await known.attend(model, body, specs, signal);
  const row = short ? query : 0;
  const own = (name: string) => perHeadAndRow(first, name).map((rows) => rows[row]);
  const weights = own("weights");
  const shown = largest(weights[head], STEP_KEYS);
  const second = short ? first : await known.attend(model, body, [at("k", shown), at("v", shown)], signal);
  const some = (name: string) => {
    const all = perHeadAndRow(second, name).map((rows) => (short ? shown.map((key) => rows[key]) : rows));
    // Where keys have fewer heads than queries, each is shared by a group.
    return range(weights.length).map((each) => all[Math.floor((each * all.length) / weights.length)]);
  };
  const output = first.outputs.output as Tensor | undefined;
  const width = output?.shape.at(-1) ?? 0;
  return {
    query,
    shown,
    q: own("q"),
    k: some("k"),
    v: some("v"),
    scores: own("scores"),
    weights,
    heads: own("heads"),
    output: output ? (output.data as Float32Array).subarray(row * width, (row + 1) * width) : new Float32Array(),
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
