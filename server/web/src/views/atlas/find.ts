// The search for heads by what they look at: "it -> animal".
import type { Picture } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";

const ANSWERS = 0.3; // the weight from which a head answers a search

export interface Search {
  /** Positions of queries and keys that the words of the search name. */
  queries: number[];
  keys: number[];
  /** Why the search finds nothing; empty where it can. */
  wrong: string;
}

/** Reads a search; null where it is empty. */
export function readSearch(text: string, { queries, keys }: Picture): Search | null {
  if (!text.trim()) return null;
  const [from, to, ...more] = text.split(/->|→|>/).map((each) => each.trim());
  if (to === undefined || more.length) return { queries: [], keys: [], wrong: "write it as: it -> animal" };
  const found = { queries: places(queries, from), keys: places(keys, to), wrong: "" };
  const missing = [found.queries.length ? "" : from, found.keys.length ? "" : to].filter(Boolean);
  return { ...found, wrong: missing.length ? `no token is “${missing.join("” or “")}”` : "" };
}

/** The positions of a token, whatever its case; all of none. */
function places(tokens: string[], word: string): number[] {
  const wanted = word.toLowerCase();
  return range(tokens.length).filter((at) => !wanted || tokens[at].trim().toLowerCase() === wanted);
}

/** The largest weight of a head between the positions of a search. */
export function strengthOf({ layers }: Picture, layer: number, head: number, { queries, keys }: Search): number {
  const wanted = new Set(keys);
  let most = 0;
  for (const query of queries)
    layers[layer].weights.each(head, query, (key, weight) => {
      if (wanted.has(key)) most = Math.max(most, weight);
    });
  return most;
}

export function isAnswer(strength: number): boolean {
  return strength >= ANSWERS;
}
