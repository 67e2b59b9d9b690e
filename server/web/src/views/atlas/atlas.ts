// The atlas: every head of every layer at once, one or two of them large, one layer in full, and the way through layers.
import { html, nothing, render, type TemplateResult } from "lit-html";
import type { Answer } from "../../api/answer.ts";
import { askMean, askRollout, askRow, besides, type Read, sideOf } from "../../api/ask.ts";
import { patiently } from "../../api/known.ts";
import type { Shown } from "../../app/export.ts";
import type { Style } from "../../drawing/drawing.ts";
import { cut, token } from "../../drawing/format.ts";
import { palette } from "../../drawing/palette.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import type { Weights } from "../../drawing/weights.ts";
import { type Tab, toggled } from "../../state/state.ts";
import { HeadsView } from "../heads/heads.ts";
import { layerChoice } from "../heads/layers.ts";
import { firstQuery } from "../meet/heads.ts";
import type { Context, View } from "../view.ts";
import { Arrival } from "./arrival.ts";
import { type Statistics, statisticsOf } from "./badges.ts";
import { cellsOf, isReordered } from "./cells.ts";
import { readSearch, type Search } from "./find.ts";
import { LargeHead } from "./large.ts";
import { RolloutTab } from "./rollout-tab.ts";
import { type Cell, grid, paintHead } from "./thumbnails.ts";
import { tools } from "./tools.ts";

const TAB_NAMES: Record<Tab, string> = { heads: "All heads", layer: "One layer", rollout: "Through the layers" };
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
  /** What is asked, and what is drawn of it: once it is shown, an answer grows. */
  private arrival: Arrival | null = null;
  private shownFrom: Arrival | null = null;
  private arrivalOf = "";
  private context: Context | null = null;
  private read: Read | null = null;
  /** Of a long sequence, one whole row of the layer looked at. */
  private row: WholeRow | null = null;
  /** What is drawn: the answer's picture, or the one without special tokens. */
  private drawn: Picture | null = null;
  private drawnFor = "";
  /** What thumbnails are of, whatever has arrived. */
  private painted = "";
  /** Of each head; null where they are not counted yet. */
  private counts: Statistics[][] | null = null;
  private readonly large = [new LargeHead(), new LargeHead()];
  private readonly rollout = new RolloutTab();
  private readonly heads = new HeadsView((changes) =>
    this.context?.change({ ...changes, ...(changes.lock ? { query: changes.lock.query } : {}) }, true),
  );

  constructor() {
    this.element.className = "atlas";
  }

  async load(context: Context, signal: AbortSignal): Promise<void> {
    const { state, model, layer, known } = context;
    const layers = besides(model, layer);
    const arrival = this.arriving(context);
    await until(arrival.begun, signal);
    const answer = arrival.answer!;
    if (state.tab === "rollout" && rolls(answer.picture))
      this.read = await askRollout(
        known,
        model,
        state.a,
        layers,
        queryOf(state, answer),
        answer.picture.keys.length,
        signal,
      );
    this.answer = arrival.answer;
  }

  /** The arrival of a state's layers: the one that goes on, or a new one in its place. */
  private arriving({ known, model, layer, state }: Context): Arrival {
    const only = state.tab === "layer" ? layer : null;
    const layers = besides(model, layer);
    const question = JSON.stringify([model.name, model.version, state.a, layers.map(({ name }) => name), only?.name]);
    if (this.arrival && question === this.arrivalOf) return this.arrival;
    this.arrival?.stop();
    const arrival = new Arrival(known, { model, input: state.a, layers, only }, () => {
      if (!this.element.isConnected) arrival.stop();
      if (arrival !== this.shownFrom) return;
      this.answer = arrival.answer;
      this.show(this.context!);
    });
    arrival.begun.catch(() => {
      if (this.arrival === arrival) this.arrivalOf = "";
    });
    this.arrival = arrival;
    this.arrivalOf = question;
    return arrival;
  }

  show(context: Context): void {
    this.context = context;
    if (!this.answer) return;
    this.shownFrom = this.arrival;
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
    const { statistics } = this.arrival!;
    const there = picture.layers.map(({ weights }) => (weights.pending ? "" : "."));
    this.painted = `${picture.title} ${picture.model} ${JSON.stringify(this.answer!.input)} ${hide}`;
    const question = `${this.painted} ${there} ${statistics !== null}`;
    if (this.drawnFor === question && this.drawn) return;
    this.drawnFor = question;
    const keep = special.map((each) => !each);
    const rows = picture.toItself ? keep : picture.queries.map(() => true);
    const changed = (weights: Weights) => (hide ? weights.renormalised(keep, rows) : weights);
    this.drawn = {
      ...picture,
      layers: picture.layers.map(({ name, weights }) => ({ name, weights: changed(weights) })),
    };
    this.counts = statisticsOf(this.answer!, this.context!.model, statistics);
  }

  private get canHide(): boolean {
    const { picture, special } = this.answer!;
    return special.some(Boolean) && picture.layers.every(({ weights }) => weights.complete);
  }

  // --- all heads -------------------------------------------------------------------------------------------------------

  private cells(): Cell[] {
    const { badge, sort, a } = this.context!.state;
    return cellsOf(this.drawn!, this.counts, this.search, badge, sort, a.off);
  }

  private cellOf(cells: Cell[], pair: string): Cell | undefined {
    return cells.find(({ layerName, head }) => `${layerName}.${head}` === pair);
  }

  private chosen(cells: Cell[]): Cell {
    const { state, layer } = this.context!;
    const best =
      this.search && !state.layer ? [...cells].sort((a, b) => (b.found ?? 0) - (a.found ?? 0))[0] : undefined;
    const there = (cell: Cell | undefined) => cell && !this.drawn!.layers[cell.layer].weights.pending;
    const wanted = best ?? this.cellOf(cells, `${layer.name}.${state.head}`);
    return (there(wanted) ? wanted : cells.find(there)) ?? cells[0];
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
      const { weights } = this.drawn!.layers[layer];
      const stamp = `${this.painted} ${layer} ${head} ${weights.pending} ${most} ${colours.paper}`;
      if (canvas.dataset.stamp === stamp) return;
      canvas.dataset.stamp = stamp;
      paintHead(canvas, weights, head, most, colours);
    };
    return html`
      ${tools({ state, cells, style: this.style, wrong: this.search?.wrong ?? "", special: this.canHide ? this.specialNames() : null, change })}
      <div class="atlas-panes">
        <div class="pane"><p class="quiet-text" role="status">${picture.layers.length} × ${columns}: ${cells.length} heads${narrowed ? html`, <b>${answering}</b> of them answer` : nothing}.
            Click to open, ⇧ click to compare two. ${this.arrival!.progress(() => {
              this.arrivalOf = "";
              change({});
            })}</p>
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
        statistics: this.counts?.[cell.layer][cell.head] ?? null,
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
      layers: (this.drawn ?? picture).layers.filter(({ weights }) => !weights.pending),
      heading: picture.title,
      about: aboutPicture(picture),
      most: this.most,
    };
  }

  /** Of the layers that are there. */
  picture(): Picture | null {
    if (!this.answer) return null;
    const { picture } = this.answer;
    return { ...picture, layers: picture.layers.filter(({ weights }) => !weights.pending) };
  }
}

/** Waits for something that goes on by itself, until the wait is given up. */
function until<T>(going: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((done, fail) => {
    signal.addEventListener("abort", () => fail(signal.reason), { once: true });
    going.then(done, fail);
  });
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
