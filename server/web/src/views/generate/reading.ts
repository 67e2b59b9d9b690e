// What a token that was written read before: of all heads, of a layer's, or of one.

import type { Model } from "../../api/api.ts";
import { headOf, layerOf } from "../../api/ask.ts";
import type { Generation, Written } from "../../api/generation.ts";
import { range } from "../../drawing/weights.ts";

/** Which heads: null is the mean over all layers, or over the heads of a layer. */
export interface ReadBy {
  layer: number | null;
  head: number | null;
}

/** Reads the choice of the state: "", "LAYER.mean" or "LAYER.HEAD". */
export function readBy(text: string, { manifest: { layers } }: Model): ReadBy {
  const layer = layers.findIndex(({ name }) => name === layerOf(text));
  if (layer < 0) return { layer: null, head: null };
  const head = headOf(text);
  return { layer, head: head >= 0 && head < layers[layer].heads ? head : null };
}

/** In words, as "layer 3, head 1". */
export function nameOf({ layer, head }: ReadBy, { manifest: { layers } }: Model): string {
  if (layer === null) return "mean over all heads";
  return `layer ${layers[layer].name}, ${head === null ? "mean over heads" : `head ${head}`}`;
}

/** One row of weights, [S]. */
export function rowOf({ means, heads }: Written, { layer, head }: ReadBy): Float32Array {
  if (layer === null) return mean(means);
  return head === null ? means[layer] : heads[layer].row(head, 0);
}

/** The weight on each sentence of the prompt, and on what was written before; empty of a prompt of one sentence. */
export function bySentence({ prompt, sentences }: Generation, step: Written, by: ReadBy): [string, number][] {
  if (!sentences.length) return [];
  const { layer, head } = by;
  const ofLayer = (heads: Float32Array[]) => (head === null ? mean(heads) : heads[head]);
  const sums = layer === null ? mean(step.sums.map((heads) => mean(heads))) : ofLayer(step.sums[layer]);
  const rest = 1 - sums.reduce((sum, each) => sum + each, 0);
  const named = sentences.map(({ begin, end }, at): [string, number] => [joined(prompt.slice(begin, end)), sums[at]]);
  return step.means[0].length > prompt.length ? [...named, ["what was written", Math.max(0, rest)]] : named;
}

function mean(rows: Float32Array[]): Float32Array {
  return rows[0].map((_, at) => rows.reduce((sum, row) => sum + row[at], 0) / rows.length);
}

/** Tokens as a text: as they are where one of them begins with a space, else with spaces between. */
export function joined(tokens: string[]): string {
  return tokens.join(tokens.some((each) => each.startsWith(" ")) ? "" : " ").trim();
}

/** The keys with the largest weights, at least of a share. */
export function strongest(row: Float32Array, most: number, least: number): number[] {
  return range(row.length)
    .filter((key) => row[key] >= least)
    .sort((a, b) => row[b] - row[a])
    .slice(0, most);
}
