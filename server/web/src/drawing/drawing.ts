// One head's weights as a matrix or as lines: where things stand, what is drawn, and what lies under a point.
import { brief, cut, weight as written } from "./format.ts";
import { headColour, inkOn, type Palette, rgb } from "./palette.ts";
import { FONT, type Pen } from "./pen.ts";
import { range, type Weights } from "./weights.ts";

export type Style = "matrix" | "lines";

/** A place in a drawing: a query, and perhaps one of its keys. */
export interface Place {
  query: number;
  key: number | null;
}

/** One head's weights and what its rows and columns are called. */
export interface Drawn {
  weights: Weights;
  head: number;
  /** Which of the heads' colours; the accent for a mean, or for a head that stands alone. */
  colour: number | null;
  queries: string[];
  keys: string[];
  /** The weight that has the ramp's last colour. */
  most: number;
  /** Around nothing, in -most..most. */
  difference?: boolean;
}

/** A drawing of one head, within a width. */
export interface Drawing {
  width: number;
  height: number;
  base(pen: Pen, colours: Palette): void;
  /** What stands out: on top of the base, or in place of it where `alone`. */
  highlight(pen: Pen, colours: Palette, place: Place): void;
  /** Whether a highlight is drawn in place of the base. */
  alone: boolean;
  at(x: number, y: number): Place | null;
}

const LABEL = 12;
const READABLE = 11; // pixels from label to label
const MOST_LETTERS = 14;
const NUMBERED = 28; // pixels of a cell that holds a number

export function drawing(style: Style, drawn: Drawn, width: number): Drawing {
  return style === "matrix" ? matrix(drawn, width) : lines(drawn, width);
}

const ruler = document.createElement("canvas").getContext("2d");

/** The width of the widest label, as it stands where it is chosen, which is bold. */
function labelWidth(labels: string[], letters = MOST_LETTERS): number {
  if (!ruler) return 80;
  ruler.font = `600 ${LABEL}px ${FONT}`;
  return labels.reduce((most, label) => Math.max(most, ruler.measureText(cut(label, letters)).width), 8) + 10;
}

/** Where the cells of a matrix and the names of its rows and columns lie. */
function gridOf({ weights, queries, keys }: Drawn, width: number) {
  const [T, S] = [weights.queries, weights.keys];
  const gutter = labelWidth(queries);
  const named = (width - gutter) / S >= READABLE;
  const left = named ? gutter : 0;
  // Names that would touch stand upright; others lean, and the last one leans over the edge.
  const upright = (width - left) / S < 24;
  const over = named && !upright ? Math.min(36, labelWidth(keys.slice(-1)) * 0.7) : 0;
  const size = Math.min((width - left - over) / S, 56);
  const top = named ? labelWidth(keys) * (upright ? 1 : 0.74) + (upright ? 2 : 10) : 0;
  const x = (key: number) => left + key * size;
  const y = (query: number) => top + query * size;
  return { T, S, named, left, upright, over, size, grid: size * S, top, x, y };
}

/** Each weight as a cell, with its number where there is room. */
function cells(
  pen: Pen,
  { weights, head }: Drawn,
  { T, S, size, x, y }: ReturnType<typeof gridOf>,
  shade: (weight: number) => string,
): void {
  const gap = size > 8 ? 1 : 0;
  for (const i of range(T)) {
    const row = weights.row(head, i);
    for (const j of range(S)) {
      pen.rect(x(j), y(i), size - gap, size - gap, shade(row[j]));
      if (size >= NUMBERED && Math.abs(row[j]) >= 0.005)
        pen.text(x(j) + size / 2, y(i) + size / 2, row[j].toFixed(2), {
          size: 11,
          anchor: "middle",
          fill: inkOn(shade(row[j])),
        });
    }
  }
}

function matrix(drawn: Drawn, width: number): Drawing {
  const { weights, head, queries, keys } = drawn;
  const at = gridOf(drawn, width);
  const { T, S, named, left, upright, over, size, grid, top, x, y } = at;
  const shade = (value: number, colours: Palette) =>
    drawn.difference ? colours.difference(value / (drawn.most || 1)) : colours.ramp(shareOf(value, drawn.most));

  const labels = (pen: Pen, colours: Palette, rows: number[], columns: number[], chosen: boolean) => {
    const style = { size: LABEL, fill: chosen ? colours.accent : colours.ink, bold: chosen };
    for (const i of rows)
      pen.text(left - 7, y(i) + size / 2, cut(queries[i], MOST_LETTERS), { ...style, anchor: "end" });
    for (const j of columns)
      pen.text(x(j) + size / 2, top - 8, cut(keys[j], MOST_LETTERS), { ...style, turn: upright ? -90 : -45 });
  };
  return {
    width: left + grid + over,
    height: top + size * T,
    alone: false,
    base(pen, colours) {
      if (T * S <= 64 * 64) cells(pen, drawn, at, (w) => shade(w, colours));
      else
        pen.image(
          left,
          top,
          grid,
          size * T,
          pixels(weights, head, grid, size * T, (w) => shade(w, colours)),
        );
      if (named) labels(pen, colours, range(T), range(S), false);
    },
    highlight(pen, colours, { query, key }) {
      const line = size > 8 ? 2 : 1;
      pen.frame(left + line / 2, y(query), grid - line, Math.max(size, 2), colours.accent, line);
      if (key !== null) {
        pen.frame(x(key), top, Math.max(size, 2), size * T, colours.accent, size > 8 ? 1 : 0.5);
        pen.frame(x(key), y(query), Math.max(size, 3), Math.max(size, 3), colours.accent, line + 0.5);
      }
      if (!named) return;
      pen.rect(0, y(query), left - 2, size, colours.paper);
      labels(pen, colours, [query], key === null ? [] : [key], true);
    },
    at(px, py) {
      const query = Math.floor((py - top) / size);
      const key = Math.floor((px - left) / size);
      if (query < 0 || query >= T || key >= S) return null;
      return { query, key: key < 0 ? null : key };
    },
  };
}

/** The largest weight under each pixel, so that a narrow peak is not lost between two. */
export function pixels(
  weights: Weights,
  head: number,
  width: number,
  height: number,
  shade: (w: number) => string,
): ImageData {
  const columns = Math.max(1, Math.min(weights.keys, Math.round(width * devicePixelRatio)));
  const rows = Math.max(1, Math.min(weights.queries, Math.round(height * devicePixelRatio)));
  const largest = new Float32Array(rows * columns);
  for (let query = 0; query < weights.queries; query++) {
    const start = Math.floor((query * rows) / weights.queries) * columns;
    weights.each(head, query, (key, weight) => {
      const at = start + Math.floor((key * columns) / weights.keys);
      if (Math.abs(weight) > Math.abs(largest[at])) largest[at] = weight;
    });
  }
  const table = range(512).map((step) => Uint8ClampedArray.from([...rgb(shade(step / 255.5 - 1)), 255]));
  const image = new ImageData(columns, rows);
  largest.forEach((value, at) => {
    image.data.set(table[Math.round((value + 1) * 255.5)], at * 4);
  });
  return image;
}

function inkOf({ colour }: Drawn, colours: Palette): string {
  return colour === null ? colours.accent : headColour(colours, colour);
}

function lines(drawn: Drawn, width: number): Drawing {
  const { weights, head, queries, keys } = drawn;
  const [T, S] = [weights.queries, weights.keys];
  const most = Math.max(T, S);
  const pitch = most <= 40 ? 24 : Math.max(1.25, Math.min(16, 640 / most));
  const named = pitch >= READABLE;
  const letters = width < 300 ? 9 : MOST_LETTERS;
  const left = named || most > 64 ? labelWidth(queries, letters) : 8;
  const right = width - (named || most > 64 ? labelWidth(keys, letters) : 8);
  const y = (at: number) => 12 + (at + 0.5) * pitch;
  const height = most * pitch + 24;
  const curve = (query: number, key: number) => {
    const [from, to, middle] = [y(query), y(key), (left + right) / 2];
    return `M${left},${from}C${middle},${from},${middle},${to},${right},${to}`;
  };
  // Of a long sequence only what stands out is drawn of all rows at once.
  const faintest = drawn.most * (most > 64 ? 0.3 : 0.02);

  const bundle = (pen: Pen, colours: Palette, query: number, opacity: number) =>
    weights.each(head, query, (key, weight) => {
      const share = shareOf(weight, drawn.most);
      if (weight >= faintest || (opacity === 1 && share >= 0.005))
        pen.path(curve(query, key), inkOf(drawn, colours), Math.max(0.7, share * 6), opacity * (0.15 + 0.85 * share));
    });
  const label = (pen: Pen, colours: Palette, side: "query" | "key", at: number, chosen: boolean) => {
    const style = { size: LABEL, fill: chosen ? colours.accent : colours.ink, bold: chosen } as const;
    if (side === "query") pen.text(left - 8, y(at), cut(queries[at], letters), { ...style, anchor: "end" });
    else pen.text(right + 8, y(at), cut(keys[at], letters), style);
  };
  const names = (pen: Pen, colours: Palette, query: number | null) => {
    if (!named) return;
    for (const i of range(T)) label(pen, colours, "query", i, i === query);
    for (const j of range(S)) label(pen, colours, "key", j, false);
  };
  return {
    width,
    height,
    alone: true,
    base(pen, colours) {
      for (const query of range(T)) bundle(pen, colours, query, most > 64 ? 0.35 : 0.8);
      names(pen, colours, null);
    },
    highlight(pen, colours, { query, key }) {
      bundle(pen, colours, query, 1);
      names(pen, colours, query);
      if (key !== null && named) label(pen, colours, "key", key, true);
      if (named) return;
      label(pen, colours, "query", query, true);
      let best = { key: 0, weight: -1 };
      weights.each(head, query, (each, weight) => {
        if (weight > best.weight) best = { key: each, weight };
      });
      label(pen, colours, "key", key ?? best.key, false);
    },
    at(px, py) {
      const place = Math.floor((py - 12) / pitch);
      return px <= (left + right) / 2 && place >= 0 && place < T ? { query: place, key: null } : null;
    },
  };
}

/** Where on the ramp a weight lies, 0..1. Where weights are small, the root parts them better. */
export function shareOf(weight: number, most: number): number {
  const share = Math.min(1, Math.max(0, weight / most));
  return most < 1 ? Math.sqrt(share) : share;
}

export interface Panel {
  drawn: Drawn;
  title: string;
}

/** The least width at which a drawing has the names of all its tokens, within limits. */
export function namedWidth(queries: string[], keys: string[], least: number, most: number): number {
  return Math.max(least, Math.min(most, Math.ceil(labelWidth(queries) + keys.length * READABLE)));
}

/** What a file shows: panels under a heading, and what they are of. */
export interface Sheet {
  style: Style;
  panels: Panel[];
  heading: string;
  /** The model, the layer, and more that a reader of the file has to know. */
  about: string;
  place: Place | null;
}

/** Draws panels side by side with a heading, as for a file. Returns the size. */
export function sheet(
  pen: Pen,
  colours: Palette,
  { style, panels, heading, about, place }: Sheet,
): { width: number; height: number } {
  const least = panels.length === 1 ? 520 : 360;
  const each = Math.max(...panels.map(({ drawn }) => namedWidth(drawn.queries, drawn.keys, least, 820)));
  const columns = Math.max(1, Math.min(panels.length, 4, Math.floor(1440 / each)));
  const [margin, gap, caption, top] = [24, 28, 26, 78];
  const drawings = panels.map(({ drawn }) => drawing(style, drawn, each));
  const tallest = Math.max(...drawings.map(({ height }) => height));
  const rows = Math.ceil(panels.length / columns);
  const width = margin * 2 + columns * each + (columns - 1) * gap;
  const height = Math.ceil(margin + top + rows * (tallest + caption) + (rows - 1) * gap);
  const fitting = (text: string, letter: number) => cut(text, Math.floor((width - 2 * margin) / letter));
  pen.rect(0, 0, width, height, colours.paper);
  pen.text(margin, margin + 6, fitting(heading, 8), { size: 15, fill: colours.ink, bold: true });
  const axes = style === "matrix" ? "rows look at columns" : "left looks at right, as thick as the weight";
  pen.text(margin, margin + 26, fitting(`${about}; ${axes}`, 6.4), { size: 12, fill: colours.muted });
  if (style === "matrix") scaleOfColours(pen, colours, panels[0].drawn.most, margin, margin + 38);
  drawings.forEach((one, i) => {
    const x = margin + (i % columns) * (each + gap);
    const y = top + Math.floor(i / columns) * (tallest + caption + gap);
    const moved = shifted(pen, x, y + caption);
    pen.text(x, y + 8, panels[i].title, { size: 12, fill: colours.muted });
    if (!(place && one.alone)) one.base(moved, colours);
    if (place) one.highlight(moved, colours, place);
  });
  return { width, height };
}

/** Which colour a weight has, from 0 to the largest. */
export function scaleOfColours(pen: Pen, colours: Palette, most: number, x: number, y: number): void {
  const style = { size: 11, fill: colours.muted };
  pen.text(x, y + 5, "weight 0", style);
  for (const step of range(24)) pen.rect(x + 54 + step * 4, y, 4, 10, colours.ramp(shareOf((step / 23) * most, most)));
  pen.text(x + 156, y + 5, brief(most), style);
}

function shifted(pen: Pen, dx: number, dy: number): Pen {
  return {
    rect: (x, y, ...rest) => pen.rect(x + dx, y + dy, ...rest),
    frame: (x, y, ...rest) => pen.frame(x + dx, y + dy, ...rest),
    text: (x, y, ...rest) => pen.text(x + dx, y + dy, ...rest),
    image: (x, y, ...rest) => pen.image(x + dx, y + dy, ...rest),
    path: (d, ...rest) => pen.path(moved(d, dx, dy), ...rest),
  };
}

/** Moves a path of absolute coordinates, which is all that links are made of. */
function moved(d: string, dx: number, dy: number): string {
  let count = 0;
  return d.replace(/-?\d+(\.\d+)?(e-?\d+)?/g, (value) => {
    const shift = count++ % 2 ? dy : dx;
    return String(Math.round((Number(value) + shift) * 100) / 100);
  });
}

/** Says in words what stands at a place. */
export function spoken(drawn: Drawn, { query, key }: Place): string {
  const from = cut(drawn.queries[query], 40);
  if (key === null) return from;
  const value = drawn.weights.at(drawn.head, query, key);
  const number = value === undefined ? "less than its largest" : drawn.difference ? value.toFixed(4) : written(value);
  return `${from} → ${cut(drawn.keys[key], 40)}: ${number}`;
}
