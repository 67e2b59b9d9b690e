// The heads of an atlas in their order, and which of them a search and a filter leave.
import type { Picture } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import type { Sort } from "../../state/state.ts";
import { badgeOf, type Statistics } from "./badges.ts";
import { isAnswer, type Search, strengthOf } from "./find.ts";
import type { Cell } from "./thumbnails.ts";

/**
 * @param counts [layers][H]; null where heads are not counted yet, and have no badges
 * @param only the badge of the heads that are left; empty for all
 * @param off heads that are switched off, as "layer.head"
 */
export function cellsOf(
  picture: Picture,
  counts: Statistics[][] | null,
  search: Search | null,
  only: string,
  sort: Sort,
  off: string[],
): Cell[] {
  const searches = search !== null && !search.wrong;
  const cells = picture.layers.flatMap(({ name, weights }, layer) =>
    range(weights.heads).map((head): Cell => {
      const badge = counts && badgeOf(counts[layer][head]);
      const found = searches ? strengthOf(picture, layer, head, search) : null;
      const left = (found === null || isAnswer(found)) && (!only || badge === only);
      return { layer, layerName: name, head, badge, found, counts: left, off: off.includes(`${name}.${head}`) };
    }),
  );
  const spread = ({ layer, head }: Cell) => counts?.[layer][head].entropy ?? 0;
  const orders: Record<Sort, ((a: Cell, b: Cell) => number) | null> = {
    model: null,
    search: searches ? (a, b) => (b.found ?? 0) - (a.found ?? 0) : null,
    broad: (a, b) => spread(b) - spread(a),
    narrow: (a, b) => spread(a) - spread(b),
  };
  const order = orders[sort];
  return order ? [...cells].sort(order) : cells;
}

/** Whether cells stand in another order than the model's. */
export function isReordered(cells: Cell[]): boolean {
  return cells.some(
    (cell, at) =>
      at > 0 &&
      (cell.layer < cells[at - 1].layer || (cell.layer === cells[at - 1].layer && cell.head < cells[at - 1].head)),
  );
}
