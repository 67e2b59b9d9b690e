// What an input is compared with, until something is chosen: itself, with one thing changed.
import { type Answer, askAnswer } from "../../api/answer.ts";
import { besides } from "../../api/ask.ts";
import { range } from "../../drawing/weights.ts";
import { type Input, isChanged, unchanged } from "../../state/state.ts";
import { best, firstQuery } from "../meet/heads.ts";
import type { Context } from "../view.ts";

/** The two sides of a comparison: before and after what was changed; else with the word hidden that is looked at most. */
export async function sidesOf(context: Context, signal: AbortSignal): Promise<{ a: Input; b: Input }> {
  const { state, known, model, layer } = context;
  const { a } = state;
  if (isChanged(a)) return { a: unchanged(a), b: a };
  const answer = await askAnswer(known, model, a, besides(model, layer), signal);
  const key = mostLookedAt(answer, state.query ?? firstQuery(answer));
  return { a, b: key < 0 ? a : { ...a, hidden: [key] } };
}

function mostLookedAt({ picture, special }: Answer, query: number): number {
  const sums = new Float32Array(picture.keys.length);
  for (const { weights } of picture.layers)
    for (const head of range(weights.heads))
      weights.each(head, Math.min(query, weights.queries - 1), (key, weight) => {
        sums[key] += weight;
      });
  return best(sums, (key) => !special[key] && !(picture.toItself && key === query)).key;
}
