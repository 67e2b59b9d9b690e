// The numbers of a track: every stage of one position, the vectors before, and what single heads answer and add.

import { type Answer, askAnswer } from "../../api/answer.ts";
import type { Layer, Model, OutputSpec, Tensor } from "../../api/api.ts";
import { askStages, besides, type Stages, sequence } from "../../api/ask.ts";
import type { Known } from "../../api/known.ts";
import { row as vectorOf } from "../../api/matrix.ts";
import { token } from "../../drawing/format.ts";
import type { Picture, Prediction } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import type { Input } from "../../state/state.ts";
import { said } from "../meet/heads.ts";

export interface Tour {
  input: Input;
  layer: Layer;
  picture: Picture;
  stages: Stages;
  head: number;
  heads: number;
  word: string;
  /** Whether keys are of another sequence than queries. */
  cross: boolean;
  /** The vectors of queries and of keys that go into the attention, [D] of each shown key; null where they are not told. */
  vectors: { query: Float32Array; keys: Float32Array[] } | null;
  /** [H][D] of this position; null where the layer does not give them. */
  contributions: Float32Array[] | null;
  answers: Prediction[];
  /** What the model answers with the looked-at head alone in its layer; null without predictions, or with one head. */
  alone: Prediction[] | null;
}

export interface Asked {
  known: Known;
  model: Model;
  layer: Layer;
  input: Input;
  answer: Answer;
  query: number;
  head: number;
}

export async function askTour(asked: Asked, signal: AbortSignal): Promise<Tour> {
  const { known, model, layer, input, answer, query, head } = asked;
  const { picture } = answer;
  const sizes: [number, number] = [picture.queries.length, picture.keys.length];
  const stages = await askStages(known, model, input, layer, query, head, sizes, signal);
  const [vectors, contributions, alone] = await Promise.all([
    askVectors(asked, stages, signal),
    askContributions(asked, signal),
    askAlone(asked, signal),
  ]);
  return {
    input,
    layer,
    picture,
    stages,
    head,
    heads: layer.heads,
    word: token(picture.queries[query] ?? ""),
    cross: !picture.toItself,
    vectors,
    contributions,
    answers: said(picture, query),
    alone,
  };
}

/** The vectors that enter the attention: those given, the embeddings, or what is behind the layer before. */
async function askVectors(
  { known, model, layer, input, answer, query }: Asked,
  { shown }: Stages,
  signal: AbortSignal,
): Promise<Tour["vectors"]> {
  const { toItself } = answer.picture;
  if (input.kind === "vectors" && input.query) {
    const keys = input.key ?? input.query;
    return { query: vectorOf(input.query, query), keys: shown.map((key) => vectorOf(keys, key)) };
  }
  const before = besides(model, layer);
  const at = before.findIndex(({ name }) => name === layer.name);
  const previous = at > 0 ? before[at - 1] : null;
  if (!toItself || layer.side === "SIDE_SOURCE" || (previous && !previous.stages?.includes("hidden"))) return null;
  const rows = [...new Set([query, ...shown])].sort((a, b) => a - b);
  const spec: OutputSpec = previous
    ? { name: "hidden", layers: [previous.name], as: "v", rows }
    : { name: "embeddings", as: "v", rows };
  const { outputs } = await known.attend(model, sequence(input, model, answer.picture.keys.length), [spec], signal);
  const { shape, data } = outputs.v as Tensor;
  const width = shape.at(-1)!;
  const one = (position: number) => {
    const row = rows.indexOf(position);
    return (data as Float32Array).subarray(row * width, (row + 1) * width);
  };
  return { query: one(query), keys: shown.map(one) };
}

async function askContributions(
  { known, model, layer, input, answer, query }: Asked,
  signal: AbortSignal,
): Promise<Float32Array[] | null> {
  if (!layer.stages?.includes("contributions")) return null;
  const spec: OutputSpec = { name: "contributions", layers: [layer.name], rows: [query] };
  const { outputs } = await known.attend(model, sequence(input, model, answer.picture.keys.length), [spec], signal);
  const { shape, data } = outputs.contributions as Tensor;
  const width = shape.at(-1)!;
  return range(shape[0]).map((head) => (data as Float32Array).subarray(head * width, (head + 1) * width));
}

async function askAlone(
  { known, model, layer, input, query, head }: Asked,
  signal: AbortSignal,
): Promise<Prediction[] | null> {
  if (layer.heads < 2 || !model.manifest.predictors?.length || input.kind === "vectors") return null;
  const others = range(layer.heads).filter((each) => each !== head);
  const off = [...new Set([...input.off, ...others.map((each) => `${layer.name}.${each}`)])].sort();
  const answer = await askAnswer(known, model, { ...input, off }, besides(model, layer), signal);
  return said(answer.picture, query);
}

/** What nothing learned gives: dot products of the vectors, their softmax, and the vectors' weighted sum. */
export function unlearned({ vectors, input, stages, picture, layer }: Tour, allowed: (key: number) => boolean) {
  if (!vectors) return null;
  const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, each, d) => sum + each * b[d], 0);
  const scores = vectors.keys.map((key) => dot(vectors.query, key));
  const open = stages.shown.map((key, at) =>
    allowed(key) ? scores[at] / input.temperature : Number.NEGATIVE_INFINITY,
  );
  const most = Math.max(...open);
  const powers = open.map((score) => (most === Number.NEGATIVE_INFINITY ? 0 : Math.exp(score - most)));
  const sum = powers.reduce((a, b) => a + b, 0) || 1;
  const weights = powers.map((power) => power / sum);
  const blended = vectors.query.map((_, d) => vectors.keys.reduce((total, key, at) => total + weights[at] * key[d], 0));
  return { scores, weights, blended, whole: stages.shown.length === picture.keys.length, layer: layer.name };
}
