// What is shown of one input: its weights, all of them or the largest, and what the model predicts.
import { type Picture, positions } from "../drawing/picture.ts";
import { Weights } from "../drawing/weights.ts";
import type { Input } from "../state/state.ts";
import {
  ApiError,
  isCross,
  type Layer,
  type Model,
  type OutputSpec,
  type Place,
  type Result,
  type Tensor,
  type TokenizeRequest,
  type TopK,
} from "./api.ts";
import { LARGEST, read, rowsOf, type Side, sequence, sideOf, titleOf, WHOLE } from "./ask.ts";
import type { Known } from "./known.ts";

/** The bytes of the largest weights that are asked for at once. */
const MOST_BYTES = 6e6;

/**
 * The numbers of positions [T, S], from tokens where a text may be long; null for a text that is short, and for one that the
 * tokenizer refuses, of which the question itself tells why.
 */
async function lengths(
  known: Known,
  model: Model,
  input: Input,
  signal?: AbortSignal,
): Promise<[number, number] | null> {
  if (input.kind === "vectors") {
    const rows = input.query?.rows ?? 0;
    return [rows, input.key?.rows ?? rows];
  }
  const { text, pair, memoryText, ids, hidden } = input;
  const characters = Math.max(text.length + (pair?.length ?? 0), memoryText.length, ids.length);
  if (characters <= 2 * WHOLE && !hidden.length) return null;
  const takesPair = pair !== null && model.manifest.text?.takes_pairs;
  const count = async (request: TokenizeRequest) => (await known.tokens(model, request, signal)).tokens.length;
  try {
    const [T, S] = await Promise.all([
      input.kind === "ids" ? ids.length : count({ text, ...(takesPair ? { text_pair: pair } : {}) }),
      isCross(model) ? count({ text: memoryText, memory: true }) : null,
    ]);
    return [T, S ?? T];
  } catch (error) {
    if (error instanceof ApiError && !error.retry) return null;
    throw error;
  }
}

/** What is shown of one input: weights of the sites that share queries and keys, predictions, the last vectors. */
export interface Answer {
  input: Input;
  picture: Picture;
  /** [T, D] behind the last layer, of a short sequence. */
  vectors: { width: number; data: Float32Array } | null;
  /** Whether each key is one of the tokens that the tokenizer put beside the text. */
  special: boolean[];
}

/** The weights of all heads of some layers that are asked for at once, and how much more each portion after the first is. */
const AT_ONCE = 4e6;
const GROWTH = 3;

/** Layers in the order in which they are asked for: at once, or first a layer, so that there is something to see soon. */
function portionsOf(layers: Layer[], weights: number, first: Layer | undefined): Layer[][] {
  if (weights <= AT_ONCE || layers.length === 1) return [layers];
  // The server computes the layers before a portion again, so there are few of these.
  const left = first ? layers.filter((each) => each !== first) : layers;
  const portions = first ? [[first]] : [];
  for (let at = 0, size = 1; at < left.length; size *= GROWTH) {
    const rest = left.length - at;
    const count = rest < 2 * size ? rest : size;
    portions.push(left.slice(at, at + count));
    at += count;
  }
  return portions;
}

/**
 * Asks for the weights of some layers, which share queries and keys, and what the model predicts. Of many weights layers
 * are asked for in portions; the answer after each has empty weights for the layers that are not there yet.
 *
 * @param first the layer that is asked for before all others
 */
export async function* askPortions(
  known: Known,
  model: Model,
  input: Input,
  layers: Layer[],
  signal?: AbortSignal,
  first?: Layer,
): AsyncGenerator<Answer, void> {
  const sizes = await lengths(known, model, input, signal);
  const long = sizes !== null && Math.max(...sizes) > WHOLE;
  const heads = layers.reduce((sum, each) => sum + each.heads, 0);
  const top_k = long ? Math.max(1, Math.min(LARGEST, Math.floor(MOST_BYTES / (8 * heads * sizes[0])))) : WHOLE;
  const portions = portionsOf(layers, long ? heads * sizes[0] * sizes[1] : 0, first);
  const body = { ...sequence(input, model, sizes?.[1]), token_offsets: input.kind === "text" };
  const arrived = new Map<Layer, TopK>();
  for (const portion of portions) {
    const specs = portion.map((layer): OutputSpec | string => ({
      name: "weights",
      as: `w${layers.indexOf(layer)}`,
      layers: [layer.name],
      top_k,
    }));
    // What is behind the last layer is asked for with it.
    if (portion === portions.at(-1)) specs.push(...besidesWeights(model, input, long));
    const result = await known.attend(model, body, specs, signal);
    for (const layer of portion) arrived.set(layer, result.outputs[`w${layers.indexOf(layer)}`] as TopK);
    yield answerOf(model, input, layers, arrived, result);
  }
}

/** As `askPortions`, all of it. */
export async function askAnswer(
  known: Known,
  model: Model,
  input: Input,
  layers: Layer[],
  signal?: AbortSignal,
): Promise<Answer> {
  let whole: Answer | undefined;
  for await (const answer of askPortions(known, model, input, layers, signal)) whole = answer;
  return whole!;
}

/** Predictions, and of a short sequence the vectors behind the last layer. */
function besidesWeights(model: Model, input: Input, long: boolean): (OutputSpec | string)[] {
  const last = model.manifest.layers.at(-1)!;
  const vectors = (["hidden", "output"] as const).find((stage) => last.stages?.includes(stage));
  return [
    ...(input.kind !== "vectors" && model.manifest.predictors?.length ? ["predictions"] : []),
    ...(vectors && !long ? [{ name: vectors, as: "vectors", layers: [last.name] }] : []),
  ];
}

function answerOf(model: Model, input: Input, layers: Layer[], arrived: Map<Layer, TopK>, result: Result): Answer {
  const side = sideOf(layers[0]);
  const [some] = arrived.values();
  const [, T] = some.values.shape;
  const names = namesOf(model, input, result, side, T);
  const S = names.keys.length;
  const weightsOf = (layer: Layer) => {
    const given = arrived.get(layer);
    return given ? read(given, S) : Weights.largest([layer.heads, T, 0], S, [], new Float32Array());
  };
  const picture: Picture = {
    title: titleOf(input),
    model: model.name,
    version: model.version,
    ...names,
    layers: layers.map((layer) => ({ name: layer.name, weights: weightsOf(layer) })),
    focus: focusOf(result),
    predictions: result.predictions ?? [],
  };
  const offsets = names.toItself && side !== "SIDE_SOURCE" ? result.token_offsets : result.memory_token_offsets;
  return {
    input,
    picture,
    vectors: vectorsOf(result),
    special: picture.keys.map((key, at) => isSpecial(key, offsets?.[at])),
  };
}

/** Asks for the server's statistics of each head, [layers][H][8], over whole rows. */
export async function askStatistics(
  known: Known,
  model: Model,
  input: Input,
  layers: Layer[],
  keys: number,
  signal?: AbortSignal,
): Promise<Float32Array[][]> {
  const specs = layers.map(({ name }, i): OutputSpec => ({ name: "statistics", as: `s${i}`, layers: [name] }));
  const { outputs } = await known.attend(model, sequence(input, model, keys), specs, signal);
  return layers.map((_, i) => rowsOf(outputs[`s${i}`] as Tensor));
}

function namesOf(model: Model, input: Input, result: Result, side: Side, T: number) {
  const source = result.memory_tokens ?? positions(input.key?.rows ?? T);
  const target = result.tokens ?? positions(T);
  if (side === "SIDE_SOURCE") return { queries: source, keys: source, toItself: true };
  const cross = model.manifest.block === "cross_attention" || side === "SIDE_CROSS";
  const toItself = input.kind === "vectors" ? !input.key : !cross;
  return { queries: target, keys: toItself ? target : source, toItself };
}

function focusOf({ predictions = [] }: Result): number | null {
  const rows = new Set(predictions.map(({ row }) => row));
  return rows.size === 1 ? ([...rows][0] ?? null) : null;
}

function vectorsOf({ outputs }: Result): Answer["vectors"] {
  const found = outputs.vectors as Tensor | undefined;
  return found ? { width: found.shape.at(-1)!, data: found.data as Float32Array } : null;
}

/** A token without a place in its text, called by a name in brackets. */
function isSpecial(token: string, place: Place | undefined): boolean {
  return /^([[<].*[\]>])$/.test(token) && (!place || place.start === place.end);
}
