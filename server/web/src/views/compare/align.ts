// Which tokens of two sequences are the same, and how much the weights of their heads differ.
import type { Picture } from "../../drawing/picture.ts";
import { range, Weights } from "../../drawing/weights.ts";

/** Pairs of positions, rising in both. */
export type Alignment = [number, number][];

/**
 * Aligns tokens by their text: the longest common subsequence. Sequences of the same length are aligned place by place,
 * so that a word and the one that replaced it are a pair.
 */
export function align(a: string[], b: string[]): Alignment {
  if (a.length === b.length) return range(a.length).map((at) => [at, at]);
  const lengths = range(a.length + 1).map(() => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  const found: Alignment = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) found.push([i++, j++]);
    else if (lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else j++;
  }
  return found;
}

/** The weights of one head of `b` less those of one of `a`, at aligned positions: [1, queries, keys]. */
export function difference(
  a: Weights,
  aHead: number,
  b: Weights,
  bHead: number,
  queries: Alignment,
  keys: Alignment,
): Weights {
  const values = new Float32Array(queries.length * keys.length);
  queries.forEach(([i, k], row) => {
    const [before, after] = [a.row(aHead, i), b.row(bHead, k)];
    keys.forEach(([j, l], column) => {
      values[row * keys.length + column] = after[l] - before[j];
    });
  });
  return Weights.whole([1, queries.length, keys.length], values);
}

export interface HeadChange {
  layer: number;
  head: number;
  /** The mean over rows of half the sum of absolute differences: 0 the same, 1 nothing in common. */
  change: number;
}

/** How much each head changed, the most first; empty where two pictures have other layers or heads, or no whole weights. */
export function changedHeads(a: Picture, b: Picture): HeadChange[] {
  const queries = align(a.queries, b.queries);
  const keys = align(a.keys, b.keys);
  const alike =
    queries.length > 0 &&
    a.layers.length === b.layers.length &&
    a.layers.every(({ weights }, at) => {
      const other = b.layers[at].weights;
      return weights.heads === other.heads && weights.complete && other.complete;
    });
  if (!alike) return [];
  return a.layers
    .flatMap(({ weights }, layer) =>
      range(weights.heads).map((head): HeadChange => {
        const other = b.layers[layer].weights;
        const sum = queries.reduce((total, [i, k]) => {
          const [before, after] = [weights.row(head, i), other.row(head, k)];
          return total + keys.reduce((row, [j, l]) => row + Math.abs(after[l] - before[j]), 0);
        }, 0);
        return { layer, head, change: sum / (2 * queries.length) };
      }),
    )
    .sort((x, y) => y.change - x.change);
}
