// The heads of all layers in one file: a row a layer, a column a head.
import { pixels, scaleOfColours, shareOf } from "./drawing.ts";
import { cut } from "./format.ts";
import type { Palette } from "./palette.ts";
import type { Pen } from "./pen.ts";
import type { PictureLayer } from "./picture.ts";
import { range } from "./weights.ts";

export interface AtlasSheet {
  layers: PictureLayer[];
  heading: string;
  about: string;
  /** The weight that has the ramp's last colour. */
  most: number;
}

const SIDE = 72;
const GAP = 6;
const MOST_CELLS = 24 * 24; // of a head, that are drawn one by one

/** Draws the atlas with its heading, scale, and the names of layers and heads. Returns the size. */
export function atlasSheet(
  pen: Pen,
  colours: Palette,
  { layers, heading, about, most }: AtlasSheet,
): { width: number; height: number } {
  const [margin, left, top] = [24, 86, 112];
  const columns = Math.max(...layers.map(({ weights }) => weights.heads));
  const width = Math.max(560, left + columns * (SIDE + GAP) + margin);
  const height = top + layers.length * (SIDE + GAP) + margin;
  const quiet = { size: 12, fill: colours.muted };
  pen.rect(0, 0, width, height, colours.paper);
  pen.text(margin, margin + 6, cut(heading, Math.floor((width - 48) / 8)), { size: 15, fill: colours.ink, bold: true });
  pen.text(margin, margin + 26, cut(`${about}; a row a layer, a column a head`, Math.floor((width - 48) / 6.4)), quiet);
  scaleOfColours(pen, colours, most, margin, margin + 38);
  pen.text(margin + 220, margin + 43, "in each head rows look at columns", { ...quiet, size: 11 });
  for (const head of range(columns))
    pen.text(left + head * (SIDE + GAP) + SIDE / 2, top - 10, String(head), { ...quiet, anchor: "middle" });
  layers.forEach(({ name, weights }, layer) => {
    const y = top + layer * (SIDE + GAP);
    pen.text(left - 8, y + SIDE / 2, cut(name, 10), { ...quiet, anchor: "end" });
    for (const head of range(weights.heads)) {
      const x = left + head * (SIDE + GAP);
      const shade = (weight: number) => colours.ramp(shareOf(weight, most));
      const [T, S] = [weights.queries, weights.keys];
      if (T * S > MOST_CELLS) pen.image(x, y, SIDE, SIDE, pixels(weights, head, SIDE, SIDE, shade));
      else
        for (const query of range(T))
          weights.each(head, query, (key, weight) => {
            pen.rect(x + (key * SIDE) / S, y + (query * SIDE) / T, SIDE / S, SIDE / T, shade(weight));
          });
      pen.frame(x, y, SIDE, SIDE, colours.muted, 0.5);
    }
  });
  return { width, height };
}
