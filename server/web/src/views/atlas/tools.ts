// What is above the heads of an atlas: the search, badges, the order, and how the head looked at is drawn.
import { html, nothing, type TemplateResult } from "lit-html";
import type { Style } from "../../drawing/drawing.ts";
import { SORTS, type Sort, type State } from "../../state/state.ts";
import { BADGES, MEANINGS } from "./badges.ts";
import type { Cell } from "./thumbnails.ts";

const SORT_NAMES: Record<Sort, string> = {
  model: "as in the model",
  search: "by the search",
  broad: "broad first",
  narrow: "narrow first",
};

export interface Tools {
  state: Readonly<State>;
  cells: Cell[];
  style: Style;
  /** Why the search finds nothing; empty where it can. */
  wrong: string;
  /** The special tokens that can be hidden; null where none can. */
  special: string | null;
  change(changes: Partial<State>): void;
}

export function tools({ state, cells, style: chosen, wrong, special, change }: Tools): TemplateResult {
  const count = (badge: string) => cells.filter((cell) => cell.badge === badge).length;
  const present = BADGES.filter(count);
  return html`<div class="atlas-tools">
      <div class="find"><label for="find">find heads</label><input id="find" type="search" placeholder="it -> animal" autocomplete="off" spellcheck="false" .value=${state.find}
        aria-invalid=${wrong ? "true" : "false"} @change=${(event: Event) => {
          const find = (event.target as HTMLInputElement).value;
          change({ find, layer: "", query: null, sort: find ? state.sort : "model" });
        }}>${wrong ? html`<span class="quiet-text" role="status">${wrong}</span>` : nothing}</div>
      ${present.map(
        (badge) =>
          html`<button type="button" class="pill" aria-pressed=${state.badge === badge} title=${MEANINGS[badge]} @click=${() => change({ badge: state.badge === badge ? "" : badge })}>${badge} ${count(badge)}</button>`,
      )}
      ${special !== null ? html`<button type="button" class="pill" aria-pressed=${!state.special} @click=${() => change({ special: !state.special })}>hide ${special}</button>` : nothing}
      <label class="field inline">sorted <select @change=${(event: Event) => change({ sort: (event.target as HTMLSelectElement).value as Sort })}>${SORTS.map(
        (sort) => html`<option value=${sort} ?selected=${state.sort === sort}>${SORT_NAMES[sort]}</option>`,
      )}</select></label>
      <div class="segmented" role="group" aria-label="Drawing">${(["lines", "matrix"] as const).map(
        (style) =>
          html`<button type="button" aria-pressed=${chosen === style} @click=${() => change({ style })}>${style === "lines" ? "arcs" : "matrix"}</button>`,
      )}</div>
    </div>`;
}
