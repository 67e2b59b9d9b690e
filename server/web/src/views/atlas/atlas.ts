// The atlas: every head of every layer at once, one or two of them large, one layer in full, and the way through layers.
import { html, nothing, render, type TemplateResult } from "lit-html";
import { type Answer, askAnswer, askMean, askRollout, askRow, besides, type Read, sideOf } from "../../api/ask.ts";
import { patiently } from "../../api/known.ts";
import type { Shown } from "../../app/export.ts";
import type { Style } from "../../drawing/drawing.ts";
import { cut, token } from "../../drawing/format.ts";
import { palette } from "../../drawing/palette.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { range, type Weights } from "../../drawing/weights.ts";
import { SORTS, type Sort, type Tab, toggled } from "../../state/state.ts";
import { HeadsView } from "../heads/heads.ts";
import { layerChoice } from "../heads/layers.ts";
import { firstQuery } from "../meet/heads.ts";
import type { Context, View } from "../view.ts";
import { BADGES, badgeOf, MEANINGS, type Statistics, statisticsOf } from "./badges.ts";
import { isAnswer, readSearch, type Search, strengthOf } from "./find.ts";
import { LargeHead } from "./large.ts";
import { RolloutTab } from "./rollout-tab.ts";
import { type Cell, grid, paintHead } from "./thumbnails.ts";

const TAB_NAMES: Record<Tab, string> = { heads: "All heads", layer: "One layer", rollout: "Through the layers" };
const SORT_NAMES: Record<Sort, string> = {
  model: "as in the model",
  search: "by the search",
  broad: "broad first",
  narrow: "narrow first",
};
const MOST_ARCS = 512; // tokens that are drawn as arcs unless these are chosen
const SIDE_NAMES = { SIDE_TARGET: "target", SIDE_SOURCE: "source", SIDE_CROSS: "target over source" };

/** One whole row of a layer, [H, 1, S]. */
interface WholeRow {
  answer: Answer | null;
  layer: string;
  query: number;
  weights: Weights;
}

export class AtlasView implements View {
  readonly element = document.createElement("section");
  private answer: Answer | null = null;
  private context: Context | null = null;
  private read: Read | null = null;
  /** Of a long sequence, one whole row of the layer looked at. */
  private row: WholeRow | null = null;
  /** What is drawn: the answer's picture, or the one without special tokens. */
  private drawn: Picture | null = null;
  private drawnFor = "";
  private counts: Statistics[][] = [];
  private readonly large = [new LargeHead(), new LargeHead()];
  private readonly rollout = new RolloutTab();
  private readonly heads = new HeadsView((changes) =>
    this.context?.change({ ...changes, ...(changes.lock ? { query: changes.lock.query } : {}) }, true),
  );

  constructor() {
    this.element.className = "atlas";
  }

  async load({ state, model, layer, known }: Context, signal: AbortSignal): Promise<void> {
    const layers = besides(model, layer);
    const answer = await askAnswer(known, model, state.a, layers, signal);
    const { picture } = answer;
    if (state.tab === "rollout" && rolls(picture))
      this.read = await askRollout(known, model, state.a, layers, queryOf(state, answer), picture.keys.length, signal);
    this.answer = answer;
  }

  show(context: Context): void {
    this.context = context;
    if (!this.answer) return;
    const { state } = context;
    this.prepare();
    const tabs = (["heads", "layer", ...(rolls(this.answer.picture) ? ["rollout"] : [])] as Tab[]).map(
      (tab) =>
        html`<button type="button" aria-pressed=${this.tab === tab} @click=${() => context.change({ tab })}>${TAB_NAMES[tab]}</button>`,
    );
    render(
      html`<div class="atlas-bar"><div class="segmented" role="group" aria-label="Part of the atlas">${tabs}</div>${this.sides()}
        ${this.tab === "layer" ? this.layerTools() : nothing}</div>
        ${this.tab === "heads" ? this.all() : this.tab === "layer" ? this.heads.element : this.rollout.element}`,
      this.element,
    );
    if (this.tab === "layer") this.showLayer(state);
    else if (this.tab === "rollout")
      this.rollout.show(this.answer.picture, this.read!, (query) => context.change({ query }));
    else this.showLarge();
  }

  private get style(): Style {
    return this.context!.state.style ?? (this.answer!.picture.keys.length > MOST_ARCS ? "matrix" : "lines");
  }

  private get tab(): Tab {
    const { tab } = this.context!.state;
    return tab === "rollout" && !(this.read && rolls(this.answer!.picture)) ? "heads" : tab;
  }

  private get query(): number {
    return queryOf(this.context!.state, this.answer!);
  }

  private get search(): Search | null {
    return readSearch(this.context!.state.find, this.answer!.picture);
  }

  /** Makes the picture that is drawn, and each head's statistics, where these are of another answer. */
  private prepare(): void {
    const { picture, special } = this.answer!;
    const hide = !this.context!.state.special && this.canHide;
    const question = `${picture.title} ${picture.model} ${JSON.stringify(this.answer!.input)} ${hide}`;
    if (this.drawnFor === question && this.drawn) return;
    this.drawnFor = question;
    const keep = special.map((each) => !each);
    const rows = picture.toItself ? keep : picture.queries.map(() => true);
    const changed = (weights: Weights) => (hide ? weights.renormalised(keep, rows) : weights);
    this.drawn = {
      ...picture,
      layers: picture.layers.map(({ name, weights }) => ({ name, weights: changed(weights) })),
    };
    this.counts = statisticsOf(this.answer!, this.context!.model);
  }

  private get canHide(): boolean {
    const { picture, special } = this.answer!;
    return special.some(Boolean) && picture.layers.every(({ weights }) => weights.complete);
  }

  // --- all heads -------------------------------------------------------------------------------------------------------

  private cells(): Cell[] {
    const { state } = this.context!;
    const { layers } = this.drawn!;
    const search = this.search;
    const cells = layers.flatMap(({ name, weights }, layer) =>
      range(weights.heads).map((head): Cell => {
        const badge = badgeOf(this.counts[layer][head]);
        const found = search && !search.wrong ? strengthOf(this.drawn!, layer, head, search) : null;
        const counts = (found === null || isAnswer(found)) && (!state.badge || badge === state.badge);
        return { layer, layerName: name, head, badge, found, counts, off: state.a.off.includes(`${name}.${head}`) };
      }),
    );
    const spread = ({ layer, head }: Cell) => this.counts[layer][head].entropy;
    const orders: Record<Sort, ((a: Cell, b: Cell) => number) | null> = {
      model: null,
      search: search && !search.wrong ? (a, b) => (b.found ?? 0) - (a.found ?? 0) : null,
      broad: (a, b) => spread(b) - spread(a),
      narrow: (a, b) => spread(a) - spread(b),
    };
    const order = orders[state.sort];
    return order ? [...cells].sort(order) : cells;
  }

  private cellOf(cells: Cell[], pair: string): Cell | undefined {
    return cells.find(({ layerName, head }) => `${layerName}.${head}` === pair);
  }

  private chosen(cells: Cell[]): Cell {
    const { state, layer } = this.context!;
    const best =
      this.search && !state.layer ? [...cells].sort((a, b) => (b.found ?? 0) - (a.found ?? 0))[0] : undefined;
    return best ?? this.cellOf(cells, `${layer.name}.${state.head}`) ?? cells[0];
  }

  private all(): TemplateResult {
    const { state, change } = this.context!;
    const { picture } = this.answer!;
    const cells = this.cells();
    const chosen = this.chosen(cells);
    const columns = Math.max(...picture.layers.map(({ weights }) => weights.heads));
    const answering = cells.filter(({ counts }) => counts).length;
    const narrowed = this.search !== null || state.badge !== "";
    const { most } = this;
    const colours = palette();
    const paint = ({ layer, head }: Cell, canvas: HTMLCanvasElement) => {
      const stamp = `${this.drawnFor} ${layer} ${head} ${colours.paper}`;
      if (canvas.dataset.stamp === stamp) return;
      canvas.dataset.stamp = stamp;
      paintHead(canvas, this.drawn!.layers[layer].weights, head, most, colours);
    };
    return html`
      ${this.tools(cells)}
      <div class="atlas-panes">
        <div class="pane"><p class="quiet-text" role="status">${picture.layers.length} × ${columns}: ${cells.length} heads${narrowed ? html`, <b>${answering}</b> of them answer` : nothing}.
            Click to open, ⇧ click to compare two.</p>
          ${grid(cells, columns, !isReordered(cells), chosen, this.cellOf(cells, state.beside), paint, {
            choose: (cell, beside) =>
              beside
                ? change({
                    beside: state.beside === `${cell.layerName}.${cell.head}` ? "" : `${cell.layerName}.${cell.head}`,
                  })
                : change({ layer: cell.layerName, head: cell.head }),
          })}</div>
        <aside class="pane inspector" aria-label="The head looked at">${this.large[0].element}${state.beside ? this.large[1].element : nothing}
          <p class="note">Attention weights are not explanations by themselves: they say what was summed, not why.</p></aside>
      </div>`;
  }

  /** The weight that has the ramp's last colour. */
  private get most(): number {
    const { layers } = this.answer!.picture;
    return layers.every(({ weights }) => weights.complete) ? 1 : Math.max(...layers.map(({ weights }) => weights.most));
  }

  private tools(cells: Cell[]): TemplateResult {
    const { state, change } = this.context!;
    const search = this.search;
    const count = (badge: string) => cells.filter((cell) => cell.badge === badge).length;
    const present = BADGES.filter(count);
    return html`<div class="atlas-tools">
      <div class="find"><label for="find">find heads</label><input id="find" type="search" placeholder="it -> animal" autocomplete="off" spellcheck="false" .value=${state.find}
        aria-invalid=${search?.wrong ? "true" : "false"} @change=${(event: Event) => {
          const find = (event.target as HTMLInputElement).value;
          change({ find, layer: "", query: null, sort: find ? state.sort : "model" });
        }}>${search?.wrong ? html`<span class="quiet-text" role="status">${search.wrong}</span>` : nothing}</div>
      ${present.map(
        (badge) =>
          html`<button type="button" class="pill" aria-pressed=${state.badge === badge} title=${MEANINGS[badge]} @click=${() => change({ badge: state.badge === badge ? "" : badge })}>${badge} ${count(badge)}</button>`,
      )}
      ${this.canHide ? html`<button type="button" class="pill" aria-pressed=${!state.special} @click=${() => change({ special: !state.special })}>hide ${this.specialNames()}</button>` : nothing}
      <label class="field inline">sorted <select @change=${(event: Event) => change({ sort: (event.target as HTMLSelectElement).value as Sort })}>${SORTS.map(
        (sort) => html`<option value=${sort} ?selected=${state.sort === sort}>${SORT_NAMES[sort]}</option>`,
      )}</select></label>
      <div class="segmented" role="group" aria-label="Drawing">${(["lines", "matrix"] as const).map(
        (style) =>
          html`<button type="button" aria-pressed=${this.style === style} @click=${() => change({ style })}>${style === "lines" ? "arcs" : "matrix"}</button>`,
      )}</div>
    </div>`;
  }

  private specialNames(): string {
    const { picture, special } = this.answer!;
    return [...new Set(picture.keys.filter((_, at) => special[at]))].join(" ");
  }

  /** Of a long sequence, the whole row of the word that asks; asked for beside the picture, which stands meanwhile. */
  private wholeRow({ layer, layerName, head }: Cell): Float32Array | null {
    const { known, model, state } = this.context!;
    const { picture } = this.answer!;
    const { answer, query, row } = this;
    if (picture.layers[layer].weights.complete) return null;
    if (row?.answer === answer && row.query === query && row.layer === layerName) return row.weights.row(head, 0);
    patiently(() => askRow(known, model, state.a, layerName, query, picture.keys.length)).then(
      (weights) => {
        if (answer !== this.answer || query !== this.query) return;
        this.row = { answer, layer: layerName, query, weights };
        this.showLarge();
      },
      () => undefined, // the largest of the row are there
    );
    return null;
  }

  private showLarge(): void {
    const { state, change, edit } = this.context!;
    const cells = this.cells();
    const shown = [this.chosen(cells), this.cellOf(cells, state.beside)];
    shown.forEach((cell, at) => {
      if (!cell) return;
      this.large[at].show({
        picture: this.drawn!,
        layer: cell.layer,
        head: cell.head,
        query: this.query,
        row: at ? null : this.wholeRow(cell),
        statistics: this.counts[cell.layer][cell.head],
        style: this.style,
        off: cell.off,
        turn: () => edit({ off: toggled(state.a.off, `${cell.layerName}.${cell.head}`) }),
        ask: (query) => change({ query }),
      });
    });
  }

  // --- one layer -------------------------------------------------------------------------------------------------------

  /** The part of an encoder-decoder that is looked at. */
  private sides(): TemplateResult | typeof nothing {
    const { model, layer, change } = this.context!;
    const sides = [...new Set(model.manifest.layers.map(sideOf))];
    if (sides.length < 2) return nothing;
    const last = (side: string) => model.manifest.layers.filter((each) => sideOf(each) === side).at(-1)!;
    return html`<div class="segmented" role="group" aria-label="Sequences">${sides.map(
      (side) =>
        html`<button type="button" aria-pressed=${sideOf(layer) === side} @click=${() => change({ layer: last(side).name, head: 0, query: null, lock: null, beside: "" })}>${SIDE_NAMES[side]}</button>`,
    )}</div>`;
  }

  private get layerAt(): number {
    const { layers } = this.answer!.picture;
    return Math.max(
      0,
      layers.findIndex(({ name }) => name === this.context!.layer.name),
    );
  }

  private layerTools() {
    const { layers } = this.answer!.picture;
    return layerChoice(layers, this.layerAt, (at) => this.context!.change({ layer: layers[at].name }));
  }

  private showLayer({ style, heads, mean, lock }: Context["state"]): void {
    const { known, model, state, layer } = this.context!;
    const { picture } = this.answer!;
    const keys = picture.keys.length;
    Object.assign(this.heads.state, { style: style ?? "matrix", heads, mean, lock });
    this.heads.show(picture, this.layerAt, {
      mean: (some) => patiently(() => askMean(known, model, state.a, layer.name, some, keys)),
      row: (query) => patiently(() => askRow(known, model, state.a, layer.name, query, keys)),
    });
  }

  // --- files -----------------------------------------------------------------------------------------------------------

  shown(): Shown | null {
    if (!this.answer || !this.context) return null;
    const { picture } = this.answer;
    if (this.tab === "layer")
      return {
        style: this.heads.state.style,
        panels: this.heads.panelsShown(),
        heading: picture.title,
        about: aboutPicture(picture, this.context.layer.name),
        place: this.heads.place,
      };
    if (this.tab === "rollout")
      return {
        style: "matrix",
        panels: [this.rollout.drawn()],
        heading: picture.title,
        about: `${aboutPicture(picture)}, attention rollout`,
        place: null,
      };
    const cells = this.cells();
    const { state } = this.context;
    const panels = [this.chosen(cells), this.cellOf(cells, state.beside)].flatMap((cell) => {
      if (!cell) return [];
      const { weights } = this.drawn!.layers[cell.layer];
      const drawn = {
        weights,
        head: cell.head,
        colour: cell.head,
        queries: picture.queries,
        keys: picture.keys,
        most: weights.complete ? 1 : weights.most,
      };
      return [{ title: `layer ${cell.layerName} head ${cell.head}`, drawn }];
    });
    return {
      style: this.style,
      panels,
      about: `${aboutPicture(picture)}${state.special || !this.canHide ? "" : ", without special tokens"}`,
      heading: `${cut(picture.title, 60)}, from ${token(picture.queries[this.query])}`,
      place: { query: this.query, key: null },
    };
  }

  allHeads(): Shown | null {
    if (!this.answer) return null;
    const { picture } = this.answer;
    return {
      layers: (this.drawn ?? picture).layers,
      heading: picture.title,
      about: aboutPicture(picture),
      most: this.most,
    };
  }

  picture(): Picture | null {
    return this.answer?.picture ?? null;
  }
}

/** Whether attention can be followed through the layers. */
function rolls({ toItself, layers }: Picture): boolean {
  return toItself && layers.length > 1;
}

/** The word that asks: the one chosen, the one searched for, else the first to begin with. */
function queryOf({ query, find }: Context["state"], answer: Answer): number {
  const wanted = query ?? readSearch(find, answer.picture)?.queries[0] ?? firstQuery(answer);
  return Math.max(0, Math.min(wanted, answer.picture.queries.length - 1));
}

/** Whether cells stand in another order than the model's. */
function isReordered(cells: Cell[]): boolean {
  return cells.some(
    (cell, at) =>
      at > 0 &&
      (cell.layer < cells[at - 1].layer || (cell.layer === cells[at - 1].layer && cell.head < cells[at - 1].head)),
  );
}
