// What any picture of weights shows, whatever draws it: the one data format of the page, its exports and the client.
import { range, Weights } from "./weights.ts";

export interface Prediction {
  name: string;
  label: string;
  probability: number;
  row?: number;
}

export interface PictureLayer {
  name: string;
  weights: Weights;
}

/** The weights of one sequence, ready to draw. */
export interface Picture {
  /** What was asked, for people. */
  title: string;
  model: string;
  version: number;
  /** T names of rows. */
  queries: string[];
  /** S names of columns. */
  keys: string[];
  /** Whether queries and keys are one sequence. */
  toItself: boolean;
  layers: PictureLayer[];
  /** The row from which all predictions were read. */
  focus: number | null;
  predictions: Prediction[];
}

/** What a file says of the picture in it: its model, version and layer. */
export function aboutPicture({ model, version }: Picture, layer?: string): string {
  return [model, version ? `version ${version}` : "", layer === undefined ? "" : `layer ${layer}`]
    .filter(Boolean)
    .join(", ");
}

export const FORMAT = "attention-picture/1";

/** Writes a picture as JSON values. */
export function writePicture(picture: Picture): object {
  const { title, model, version, queries, keys, toItself, focus, predictions } = picture;
  const layers = picture.layers.map(({ name, weights }) => ({
    name,
    ...(weights.complete ? { weights: weights.nested() } : { largest: weights.nestedLargest() }),
  }));
  return { format: FORMAT, title, model, version, queries, keys, to_itself: toItself, focus, predictions, layers };
}

/**
 * Reads a picture: our own form, the answer of `:attend` with weights, or BertViz's attention data.
 * Throws an Error that says what was expected.
 */
export function readPicture(content: unknown, title = "a file"): Picture {
  if (isObject(content)) {
    if (content.format === FORMAT) return readOwn(content);
    if (Array.isArray(content.results)) return readAnswer(content, title);
    if (content.attention !== undefined) return readBertViz(content.attention, title);
    if (content.attn !== undefined) return readBertViz([content], title);
  }
  if (Array.isArray(content) && isObject(content[0]) && "attn" in content[0]) return readBertViz(content, title);
  throw new Error("expected a picture of this page, an answer of :attend with weights, or BertViz's attention data");
}

/** Writes BertViz's attention data: what its head_view and model_view are given, [layers][H][T][S]. */
export function writeBertViz(picture: Picture): object {
  const whole = picture.layers.every(({ weights }) => weights.complete);
  if (!whole) throw new Error("BertViz takes whole weights; of long sequences the page has the largest only");
  const attention = {
    name: null,
    attn: picture.layers.map(({ weights }) => weights.nested()),
    left_text: picture.queries,
    right_text: picture.keys,
  };
  return {
    attention: [attention],
    default_filter: "0",
    root_div_id: "bertviz",
    layer: 0,
    heads: null,
    include_layers: range(picture.layers.length),
  };
}

/** Names positions that have no tokens. */
export function positions(count: number): string[] {
  return range(count).map(String);
}

type Content = Record<string, unknown>;

function isObject(value: unknown): value is Content {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readOwn(content: Content): Picture {
  const queries = names(content.queries, "queries");
  const keys = names(content.keys, "keys");
  const layers = list(content.layers, "layers").map((layer, i) => {
    if (!isObject(layer)) throw new Error(`layers[${i}]: expected an object`);
    const weights = isObject(layer.largest)
      ? sparse(layer.largest, queries.length, keys.length, `layers[${i}].largest`)
      : dense(layer.weights, queries.length, keys.length, `layers[${i}].weights`);
    return { name: String(layer.name ?? i), weights };
  });
  const focus = typeof content.focus === "number" && content.focus < queries.length ? content.focus : null;
  return {
    title: String(content.title ?? ""),
    model: String(content.model ?? ""),
    version: Number(content.version ?? 0),
    queries,
    keys,
    toItself: content.to_itself === true,
    layers: some(layers, "layers"),
    focus,
    predictions: Array.isArray(content.predictions) ? (content.predictions as Prediction[]) : [],
  };
}

function readAnswer(content: Content, title: string): Picture {
  const result = list(content.results, "results")[0];
  if (!isObject(result) || !isObject(result.outputs)) throw new Error("results[0]: expected an object with outputs");
  const found = Object.entries(result.outputs).filter(([name]) => name === "weights" || name.startsWith("weights@"));
  const layers = some(found, "results[0].outputs.weights").map(([name, tensor]) => {
    if (!isObject(tensor) || !Array.isArray(tensor.values) || !Array.isArray(tensor.shape))
      throw new Error(`results[0].outputs.${name}: expected whole weights with numbers as values`);
    const [, queries, keys] = tensor.shape as number[];
    return {
      name: name.split("@")[1] ?? "0",
      weights: dense(tensor.values, queries, keys, `results[0].outputs.${name}.values`),
    };
  });
  const { queries: T, keys: S } = layers[0].weights;
  const tokens = (result.tokens as string[] | undefined) ?? [];
  const memory = (result.memory_tokens as string[] | undefined) ?? [];
  const toItself = memory.length === 0 && T === S;
  const keys = memory.length ? memory : toItself ? tokens : [];
  return {
    title,
    model: String(content.model ?? ""),
    version: Number(content.version ?? 0),
    queries: tokens.length === T ? tokens : positions(T),
    keys: keys.length === S ? keys : positions(S),
    toItself,
    layers,
    focus: null,
    predictions: (result.predictions as Prediction[] | undefined) ?? [],
  };
}

/** BertViz's head_view has a list of {attn, left_text, right_text}; its older views an object of them by filter. */
function readBertViz(attention: unknown, title: string): Picture {
  const first = Array.isArray(attention) ? attention[0] : isObject(attention) ? Object.values(attention)[0] : undefined;
  if (!isObject(first)) throw new Error("attention: expected BertViz's list of {attn, left_text, right_text}");
  const queries = names(first.left_text, "attention[0].left_text");
  const keys = names(first.right_text, "attention[0].right_text");
  const layers = list(first.attn, "attention[0].attn").map((layer, i) => ({
    name: String(i),
    weights: dense(layer, queries.length, keys.length, `attention[0].attn[${i}]`),
  }));
  const toItself = queries.length === keys.length && queries.every((token, i) => token === keys[i]);
  return {
    title,
    model: "BertViz",
    version: 0,
    queries,
    keys,
    toItself,
    layers: some(layers, "attention[0].attn"),
    focus: null,
    predictions: [],
  };
}

function dense(value: unknown, queries: number, keys: number, path: string): Weights {
  const heads = list(value, path);
  const numbers = (heads as unknown[][][]).flat(2);
  if (heads.length === 0 || numbers.length !== heads.length * queries * keys || !numbers.every(Number.isFinite))
    throw new Error(`${path}: expected numbers [heads][${queries}][${keys}]`);
  return Weights.whole([heads.length, queries, keys], Float32Array.from(numbers as unknown as number[]));
}

function sparse(value: Content, queries: number, keys: number, path: string): Weights {
  const heads = list(value.values, `${path}.values`) as number[][][];
  const k = heads[0]?.[0]?.length ?? 0;
  const values = Float32Array.from(heads.flat(2));
  const indices = (list(value.indices, `${path}.indices`) as number[][][]).flat(2);
  if (
    values.length !== heads.length * queries * k ||
    indices.length !== values.length ||
    indices.some((i) => !(i < keys))
  )
    throw new Error(`${path}: expected indices and values [heads][${queries}][k]`);
  return Weights.largest([heads.length, queries, k], keys, indices, values);
}

function names(value: unknown, path: string): string[] {
  return list(value, path).map(String);
}

function list(value: unknown, path: string): unknown[] {
  if (!Array.isArray(value)) throw new Error(`${path}: expected a list`);
  return value;
}

function some<T>(values: T[], path: string): T[] {
  if (values.length === 0) throw new Error(`${path}: there is none`);
  return values;
}
