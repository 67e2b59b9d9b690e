// What the heads that are met look at, in a sentence.
import { html, type TemplateResult } from "lit-html";
import type { Answer } from "../../api/answer.ts";
import { cut, token } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import { best, type Met } from "./heads.ts";

const FAINT = 0.1; // the largest weight of a head that looks at nothing in particular

/** Each key that a head looks at most, and the colour of the first such head. */
export function lookedAt({ picture }: Answer, met: Met[], query: number): Map<number, string> {
  const looked = new Map<number, string>();
  for (const { layer, head, colour } of met) {
    const { key, weight } = best(picture.layers[layer].weights.row(head, query));
    if (weight >= FAINT && !looked.has(key)) looked.set(key, headColour(palette(), colour));
  }
  return looked;
}

/** As in: From "gave", its 3 heads look at I, Tater and toy. */
export function told(answer: Answer, met: Met[], query: number, all: number): TemplateResult {
  const { keys, queries } = answer.picture;
  const looked = [...lookedAt(answer, met, query)];
  const from = html`From “${token(queries[query] ?? "")}”`;
  if (!looked.length) return html`${from}, no head looks at one word in particular.`;
  const heads =
    all > met.length
      ? html`the strongest ${met.length} of ${all} heads look`
      : met.length > 1
        ? html`${met.length} heads look`
        : html`one head looks`;
  const words = looked.map(([key, colour], at) => {
    const before = at === 0 ? "" : at === looked.length - 1 ? " and " : ", ";
    return html`${before}<b .style=${`color: ${colour}`}>${cut(keys[key] ?? "", 24)}</b>`;
  });
  return html`${from}, ${heads} at ${words}.`;
}
