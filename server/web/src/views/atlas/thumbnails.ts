// Heads as thumbnails: a picture of each matrix, a badge, and the keys that move among them.
import { html, nothing, type TemplateResult } from "lit-html";
import { classMap } from "lit-html/directives/class-map.js";
import { ref } from "lit-html/directives/ref.js";
import { shareOf } from "../../drawing/drawing.ts";
import { type Palette, rgb } from "../../drawing/palette.ts";
import { range, type Weights } from "../../drawing/weights.ts";
import { type Badge, MEANINGS } from "./badges.ts";

/** One head of the atlas. */
export interface Cell {
  layer: number;
  layerName: string;
  head: number;
  badge: Badge | null;
  /** The weight that answers a search; null without a search. */
  found: number | null;
  /** Whether the search and the filter leave it. */
  counts: boolean;
  off: boolean;
}

export interface GridEvents {
  /** @param beside whether it is to stand beside the head looked at */
  choose(cell: Cell, beside: boolean): void;
}

const SHORT: Record<Badge, string> = {
  previous: "prev",
  next: "next",
  self: "self",
  first: "first",
  separator: "sep",
  broad: "broad",
};

export function grid(
  cells: Cell[],
  columns: number,
  inOrder: boolean,
  chosen: Cell | undefined,
  beside: Cell | undefined,
  paint: (cell: Cell, canvas: HTMLCanvasElement) => void,
  events: GridEvents,
): TemplateResult {
  const rows = inOrder ? [...new Set(cells.map(({ layer }) => layer))] : [];
  const one = (cell: Cell) =>
    thumbnail(cell, cell === chosen, cell === beside, paint, (event) =>
      events.choose(cell, event.shiftKey || event.ctrlKey || event.metaKey),
    );
  const move = (event: KeyboardEvent) => moved(event, cells, columns, chosen, events);
  if (!inOrder)
    return html`<div class="atlas-grid flat" role="group" aria-label="Heads" .style=${`--heads: ${columns}; --rows: ${Math.ceil(cells.length / columns)}`} @keydown=${move}>${cells.map(one)}</div>`;
  return html`<div class="atlas-grid" role="group" aria-label="Heads, a row a layer" .style=${`--heads: ${columns}; --rows: ${rows.length}`} @keydown=${move}>
    <span></span>${range(columns).map((head) => html`<span class="axis" aria-hidden="true">${head}</span>`)}
    ${rows.map((layer) => {
      const own = cells.filter((cell) => cell.layer === layer);
      return html`<span class="axis layer-name" aria-hidden="true">${own[0].layerName}</span>${own.map(one)}${range(columns - own.length).map(() => html`<span></span>`)}`;
    })}</div>`;
}

function thumbnail(
  cell: Cell,
  chosen: boolean,
  beside: boolean,
  paint: (cell: Cell, canvas: HTMLCanvasElement) => void,
  choose: (event: MouseEvent) => void,
): TemplateResult {
  const found = cell.found !== null && cell.counts ? cell.found.toFixed(2) : "";
  const does = cell.badge ? `, ${MEANINGS[cell.badge]}` : "";
  const label = `layer ${cell.layerName}, head ${cell.head}${does}${found ? `, ${found} for the search` : ""}${cell.off ? ", off" : ""}`;
  return html`<button type="button" class=${classMap({ thumbnail: true, chosen, beside, dim: !cell.counts, off: cell.off })}
    data-head=${`${cell.layerName}.${cell.head}`} aria-label=${label} aria-pressed=${chosen} tabindex=${chosen ? 0 : -1} @click=${choose}>
    <canvas ${ref((canvas) => canvas && paint(cell, canvas as HTMLCanvasElement))}></canvas>
    ${found ? html`<span class="badge found" aria-hidden="true">${found}</span>` : cell.badge ? html`<span class="badge" aria-hidden="true">${SHORT[cell.badge]}</span>` : nothing}</button>`;
}

/** The arrow keys choose the head beside the chosen one. */
function moved(
  event: KeyboardEvent,
  cells: Cell[],
  columns: number,
  chosen: Cell | undefined,
  events: GridEvents,
): void {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step || !chosen) return;
  event.preventDefault();
  const next = cells[cells.indexOf(chosen) + step];
  if (!next) return;
  events.choose(next, event.shiftKey);
  document
    .querySelector<HTMLElement>(`.thumbnail[data-head="${CSS.escape(`${next.layerName}.${next.head}`)}"]`)
    ?.focus();
}

const MOST_PIXELS = 96; // of a side

const SHADES = 511;
const shades = new Map<Palette, Uint8ClampedArray[]>();

/** The pixels of a palette's ramp, from no weight to the largest. */
function shadesOf(colours: Palette): Uint8ClampedArray[] {
  const known = shades.get(colours);
  if (known) return known;
  const made = range(SHADES + 1).map((step) => Uint8ClampedArray.from([...rgb(colours.ramp(step / SHADES)), 255]));
  shades.set(colours, made);
  return made;
}

/** Paints a head's weights, a pixel a cell; of a long sequence the largest under each pixel. */
export function paintHead(
  canvas: HTMLCanvasElement,
  weights: Weights,
  head: number,
  most: number,
  colours: Palette,
): void {
  const rows = Math.max(1, Math.min(weights.queries, MOST_PIXELS));
  const columns = Math.max(1, Math.min(weights.keys, MOST_PIXELS));
  const largest = new Float32Array(rows * columns);
  for (const query of range(weights.queries)) {
    const start = Math.floor((query * rows) / weights.queries) * columns;
    weights.each(head, query, (key, weight) => {
      const at = start + Math.floor((key * columns) / weights.keys);
      largest[at] = Math.max(largest[at], weight);
    });
  }
  const table = shadesOf(colours);
  const image = new ImageData(columns, rows);
  largest.forEach((value, at) => {
    image.data.set(table[Math.round(shareOf(value, most) * SHADES)], at * 4);
  });
  canvas.width = columns;
  canvas.height = rows;
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}
