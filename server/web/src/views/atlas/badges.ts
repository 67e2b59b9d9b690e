// What a head does, in one word: told by statistics of its weights.

import type { Answer } from "../../api/answer.ts";
import type { Model } from "../../api/api.ts";
import { entropy, range, type Weights } from "../../drawing/weights.ts";

/** Means over the rows of one head. */
export interface Statistics {
  previous: number;
  next: number;
  self: number;
  first: number;
  separator: number;
  /** The entropy of a row as a share of its largest, log2 of the keys it may attend to; of whole rows. */
  broad: number;
  /** In bits; of whole rows. */
  entropy: number;
  /** The mean distance to the keys, in positions. */
  reach: number;
}

export const BADGES = ["previous", "next", "self", "first", "separator", "broad"] as const;
export type Badge = (typeof BADGES)[number];

/** How a badge is said in full. */
export const MEANINGS: Record<Badge, string> = {
  previous: "looks at the word before",
  next: "looks at the word behind",
  self: "looks at itself",
  first: "looks at the first token",
  separator: "looks at a separator",
  broad: "looks everywhere",
};

const MOSTLY = 0.5; // of the weight
const EVENLY = 0.85; // of the largest entropy

/** @param separators which keys are separators; the first token is none */
function statistics(weights: Weights, head: number, toItself: boolean, separators: boolean[]): Statistics {
  const found = { previous: 0, next: 0, self: 0, first: 0, separator: 0, broad: 0, entropy: 0, reach: 0 };
  const { queries, keys } = weights;
  if (!queries) return found;
  for (const query of range(queries)) {
    let open = 0;
    weights.each(head, query, (key, weight) => {
      if (weight > 0) open++;
      if (key === 0) found.first += weight;
      if (separators[key]) found.separator += weight;
      if (!toItself) return;
      if (key === query) found.self += weight;
      if (key === query - 1) found.previous += weight;
      if (key === query + 1) found.next += weight;
      found.reach += weight * Math.abs(key - query);
    });
    if (!weights.complete) continue;
    const bits = entropy(weights.row(head, query));
    found.entropy += bits;
    found.broad += open > 1 ? bits / Math.log2(Math.min(open, keys)) : 0;
  }
  for (const name of Object.keys(found) as (keyof Statistics)[]) found[name] /= queries;
  return found;
}

/**
 * What the server told of a head (docs/outputs.md: entropy in nats, previous, self, next, first, separators, distance, largest).
 *
 * @param firstIsSpecial the first token counts among the server's separators, and is none here
 * @param keys how many keys each row may attend to; null where rows differ, and evenness is not told
 */
function told(row: ArrayLike<number>, firstIsSpecial: boolean, keys: number | null): Statistics {
  const [nats, previous, self, next, first, separators, reach] = Array.from(row);
  const entropy = nats / Math.LN2;
  return {
    previous,
    next,
    self,
    first,
    separator: Math.max(0, separators - (firstIsSpecial ? first : 0)),
    broad: keys !== null && keys > 1 ? entropy / Math.log2(keys) : 0,
    entropy,
    reach,
  };
}

/** The statistics of each head, [layers][H]: from its whole weights, or as the server told; null where it has not yet. */
export function statisticsOf(
  { picture, special, input }: Answer,
  { manifest }: Model,
  rows: Float32Array[][] | null,
): Statistics[][] | null {
  const separators = special.map((each, at) => each && at > 0);
  if (picture.layers.every(({ weights }) => weights.complete))
    return picture.layers.map(({ weights }) =>
      range(weights.heads).map((head) => statistics(weights, head, picture.toItself, separators)),
    );
  if (!rows) return null;
  const free = input.causal === "none" && input.left < 0 && input.right < 0;
  const open = free && !manifest.layers.some(({ causal, window }) => causal || window);
  const keys = open ? picture.keys.length - input.hidden.length : null;
  return rows.map((heads) => heads.map((row) => told(row, special[0], keys)));
}

/** The one badge of a head: what most of its weight does; null where it does nothing of the kind. */
export function badgeOf(statistics: Statistics): Badge | null {
  const mostly = BADGES.filter((badge) => statistics[badge] >= (badge === "broad" ? EVENLY : MOSTLY));
  return mostly[0] ?? null;
}
