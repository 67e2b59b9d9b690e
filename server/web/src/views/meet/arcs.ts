// Arcs from one word to others: where they run, and what stands on them. Pure geometry.
export interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

/** The box of an element within another. */
export function boxOf(element: Element, origin: DOMRect): Box {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  return {
    left: left - origin.left,
    right: right - origin.left,
    top: top - origin.top,
    bottom: bottom - origin.top,
  };
}

export interface Arc {
  d: string;
  /** Where the middle of the arc lies. */
  x: number;
  y: number;
}

export type Layout = "row" | "column";

const SPREAD = 12; // pixels between arcs of different heads at one word

const middle = (a: number, b: number) => (a + b) / 2;
const r = (value: number) => Math.round(value * 10) / 10;

/** How high an arc over a distance is, in a room. */
function rise(distance: number, room: number): number {
  return Math.min(room, 34 + 0.42 * distance);
}

/**
 * The arc from one word to another of the same line: above a row, at the right of a column. `lane` parts the arcs of
 * several heads, around 0; `room` is the most that an arc may rise.
 */
export function within(layout: Layout, from: Box, to: Box, lane: number, room: number): Arc {
  if (layout === "row") {
    const self = from === to ? 14 : 0;
    const [a, b] = [middle(from.left, from.right) + lane * SPREAD - self, middle(to.left, to.right) + lane * 4 + self];
    const base = from.top - 3;
    const up = rise(Math.abs(a - b), room) * 1.28;
    return {
      d: `M${r(a)},${r(base)}C${r(a)},${r(base - up)},${r(b)},${r(base - up)},${r(b)},${r(base)}`,
      x: middle(a, b),
      y: base - up * 0.75,
    };
  }
  const self = from === to ? 9 : 0;
  const [a, b] = [middle(from.top, from.bottom) + lane * 5 - self, middle(to.top, to.bottom) + lane * 2 + self];
  const out = rise(Math.abs(a - b), room) * 1.28;
  const [x, end] = [from.right + 4, to.right + 4];
  const far = Math.max(x, end) + out;
  return {
    d: `M${r(x)},${r(a)}C${r(far)},${r(a)},${r(far)},${r(b)},${r(end)},${r(b)}`,
    x: middle(x, end) + (far - middle(x, end)) * 0.75,
    y: middle(a, b),
  };
}

/** The arc from a word of one line to one of another: rows above each other, or columns beside each other. */
export function between(layout: Layout, from: Box, to: Box, lane: number): Arc {
  if (layout === "row") {
    const [a, b] = [middle(from.left, from.right) + lane * SPREAD, middle(to.left, to.right) + lane * 4];
    const [y, end] = [from.top - 3, to.bottom + 3];
    const half = middle(y, end);
    return { d: `M${r(a)},${r(y)}C${r(a)},${r(half)},${r(b)},${r(half)},${r(b)},${r(end)}`, x: middle(a, b), y: half };
  }
  const [a, b] = [middle(from.top, from.bottom) + lane * 5, middle(to.top, to.bottom) + lane * 2];
  const [x, end] = [from.left - 3, to.right + 3];
  const half = middle(x, end);
  return { d: `M${r(x)},${r(a)}C${r(half)},${r(a)},${r(half)},${r(b)},${r(end)},${r(b)}`, x: half, y: middle(a, b) };
}

export interface Label {
  x: number;
  y: number;
  width: number;
}

/** Moves labels apart that would cover each other, upwards, where there is no room downwards, and keeps them inside a width. */
export function apart(labels: Label[], height: number, room: number): Label[] {
  const placed: Label[] = [];
  const steps = Array.from({ length: 12 }, (_, at) => (at * height) / 2);
  for (const { x: wanted, y, width } of labels) {
    const x = Math.min(Math.max(wanted, width / 2 + 2), Math.max(width / 2 + 2, room - width / 2 - 2));
    const free = (at: number) =>
      !placed.some((other) => Math.abs(other.x - x) < (other.width + width) / 2 + 4 && Math.abs(other.y - at) < height);
    const top = height / 2 + 1;
    const places = [...steps.map((step) => y - step), ...steps.map((step) => y + step)].filter((at) => at >= top);
    placed.push({ x, y: places.find(free) ?? Math.max(top, y), width });
  }
  return placed;
}
