// All heads side by side, of one layer: matrices or lines, their mean, their entropy, and the row that is looked at.
import { html, nothing, render, svg } from "lit-html";
import { repeat } from "lit-html/directives/repeat.js";
import { type Panel as Drawable, namedWidth, type Place, type Style, shareOf, spoken } from "../../drawing/drawing.ts";
import { moveFocus } from "../../drawing/focus.ts";
import { brief, cut, token, weight as written } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import { Panel } from "../../drawing/panel.ts";
import type { Picture } from "../../drawing/picture.ts";
import { entropy, meanEntropy, range, type Weights } from "../../drawing/weights.ts";
import { Chips } from "./chips.ts";

/** What a view of heads shows; what is not named is as it was. */
export interface HeadsState {
  style: Style;
  /** Which heads; all when empty. */
  heads: number[];
  mean: boolean;
  lock: Place | null;
}

/** Where more comes from than a picture holds; none in a file. */
export interface Source {
  mean(heads: number[]): Promise<Weights>;
  row(query: number): Promise<Weights>;
}

const MEAN = -1;
const MOST_COLUMNS = 16;
const MOST_LARGEST = 6;

export class HeadsView {
  readonly element = document.createElement("section");
  readonly state: HeadsState = { style: "matrix", heads: [], mean: true, lock: null };
  private picture: Picture | null = null;
  private layer = 0;
  private source: Source | null = null;
  private hovered: Place | null = null;
  private readonly panels = new Map<number, Panel>();
  private mean: Weights | null = null;
  /** What the ramp ends at: 1, or less where a row is spread over very many keys. */
  private most = 1;
  private exact: { query: number; weights: Weights } | null = null;
  private chips: Chips | null = null;
  /** The width that was drawn for; height changes with what is pointed at, and nothing is drawn anew for it. */
  private room = 0;

  /** @param changed is called when what a link should remember has changed */
  constructor(private readonly changed: (state: HeadsState) => void) {
    this.element.className = "heads";
    new ResizeObserver(() => {
      if (this.element.clientWidth !== this.room) this.draw();
    }).observe(this.element);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.element.isConnected) this.lock(null);
    });
  }

  show(picture: Picture, layer: number, source: Source | null): void {
    this.picture = picture;
    this.layer = layer;
    this.source = source;
    this.hovered = null;
    this.exact = null;
    const { weights } = this.current;
    this.most = weights.complete ? 1 : weights.most;
    this.state.heads = this.state.heads.filter((head) => head < weights.heads);
    const { lock } = this.state;
    if (lock && (lock.query >= weights.queries || (lock.key ?? 0) >= weights.keys)) this.state.lock = null;
    this.refresh();
  }

  /** What would be drawn into a file now. */
  panelsShown(): Drawable[] {
    return this.shown().map((head) => ({ title: this.title(head), drawn: this.drawn(head)! }));
  }

  get place(): Place | null {
    return this.hovered ?? this.state.lock;
  }

  private get current(): { name: string; weights: Weights } {
    return this.picture!.layers[this.layer];
  }

  private chosen(): number[] {
    return this.state.heads.length ? this.state.heads : range(this.current.weights.heads);
  }

  /** The heads that have a panel, and the mean. */
  private shown(): number[] {
    const chosen = this.chosen();
    return [...chosen, ...(this.state.mean && chosen.length > 1 && this.mean ? [MEAN] : [])];
  }

  private title(head: number): string {
    return head === MEAN ? "mean" : `head ${head}`;
  }

  private drawn(head: number) {
    const { queries, keys } = this.picture!;
    const weights = head === MEAN ? this.mean! : this.current.weights;
    const most = this.most;
    return { weights, head: head === MEAN ? 0 : head, colour: head === MEAN ? null : head, queries, keys, most };
  }

  private refresh(): void {
    this.renew();
    this.update();
    this.draw();
    this.look();
    if (this.state.lock) this.complete(this.state.lock.query);
  }

  private renew(): void {
    const heads = this.chosen();
    const { weights } = this.current;
    this.mean = weights.complete && heads.length > 1 ? weights.mean(heads) : null;
    if (weights.complete || !this.source || heads.length < 2) return;
    const picture = this.picture;
    this.source.mean(heads).then(
      (mean) => {
        if (picture !== this.picture) return;
        this.mean = mean;
        this.update();
        this.draw();
        this.look();
      },
      () => undefined, // the panel of the mean is then missing; the heads are there
    );
  }

  private change(state: Partial<HeadsState>): void {
    Object.assign(this.state, state);
    this.refresh();
    this.changed(this.state);
  }

  /** Of what is drawn nothing changes by it; so nothing is drawn anew, or asked for again. */
  private lock(place: Place | null): void {
    this.hovered = null;
    const { lock } = this.state;
    // A second click or tap at the same place unlocks it.
    const again = place && lock && place.query === lock.query && place.key === lock.key;
    this.state.lock = again ? null : place;
    this.update();
    this.look();
    this.changed(this.state);
    if (place && !again) this.complete(place.query);
  }

  private hover(place: Place | null): void {
    // What is locked stays, until it is unlocked or another place is clicked.
    if (this.state.lock) return;
    if (place?.query === this.hovered?.query && place?.key === this.hovered?.key) return;
    this.hovered = place;
    this.look();
  }

  /** Of a long sequence, asks for the whole row that was locked. */
  private complete(query: number): void {
    if (this.current.weights.complete || !this.source || this.exact?.query === query) return;
    const picture = this.picture;
    this.source.row(query).then(
      (weights) => {
        if (picture !== this.picture) return;
        this.exact = { query, weights };
        this.look();
      },
      () => undefined, // the largest of the row are there
    );
  }

  private row(head: number, query: number): Float32Array {
    const row = new Float32Array(this.current.weights.keys);
    this.eachOf(head, query, (key, weight) => {
      row[key] = weight;
    });
    return row;
  }

  /** Calls back with each key of a row that is known. */
  private eachOf(head: number, query: number, visit: (key: number, weight: number) => void): void {
    if (head === MEAN) this.mean!.each(0, query, visit);
    else if (this.exact?.query === query) this.exact.weights.each(head, 0, visit);
    else this.current.weights.each(head, query, visit);
  }

  private entropyOf(head: number): string {
    const { weights } = head === MEAN ? { weights: this.mean! } : this.current;
    const place = this.place;
    const known = weights.complete || (head !== MEAN && place !== null && this.exact?.query === place.query);
    if (place && known) return `entropy ${entropy(this.row(head, place.query)).toFixed(2)} bits`;
    const mean = meanEntropy(weights, head === MEAN ? 0 : head);
    return mean === undefined
      ? `largest ${weights.known} of ${weights.keys} a row`
      : `entropy ${mean.toFixed(2)} bits, mean`;
  }

  private update(): void {
    const { style } = this.state;
    const colours = palette();
    for (const head of this.shown())
      if (!this.panels.has(head))
        this.panels.set(head, new Panel({ hover: (place) => this.hover(place), lock: (place) => this.lock(place) }));
    render(
      html`
        ${this.toolbar()}
        ${this.strips()}
        ${style === "matrix" ? this.legend() : nothing}
        <p class="readout" role="status"></p>
        <div class="panels">
          ${repeat(
            this.shown(),
            (head) => head,
            (head) => html`<figure>
              <figcaption><span class="dot" .style=${`--head: ${head === MEAN ? colours.ink : headColour(colours, head)}`}></span
                ><b>${this.title(head)}</b> <span class="entropy" data-head=${head}></span></figcaption>
              ${this.panels.get(head)!.element}
            </figure>`,
          )}
        </div>
        <div class="row-table"></div>
        <p class="note">Attention weights are not explanations by themselves: they say what was summed, and how much of it;
          not why the model answers as it does.</p>
      `,
      this.element,
    );
    this.chips = new Chips(this.element);
  }

  /** The choice of a style, and of heads. */
  private toolbar() {
    const { weights } = this.current;
    const { style, mean } = this.state;
    const colours = palette();
    const chosen = this.chosen();
    const toggle = (head: number) => {
      const heads = chosen.includes(head)
        ? chosen.filter((each) => each !== head)
        : [...chosen, head].sort((a, b) => a - b);
      this.change({ heads: heads.length === weights.heads ? [] : heads.length ? heads : [head] });
    };
    const styles: Style[] = ["matrix", "lines"];
    return html`<div class="toolbar">
        <div class="segmented" role="group" aria-label="View">
          ${styles.map(
            (
              each,
            ) => html`<button type="button" aria-pressed=${each === style} @click=${() => this.change({ style: each })}>
              ${each === "matrix" ? "Matrix" : "Lines"}
            </button>`,
          )}
        </div>
        <div class="toggles" role="group" aria-label="Heads">
          ${range(weights.heads).map(
            (head) => html`<button type="button" class="toggle" aria-pressed=${chosen.includes(head)}
              .style=${`--head: ${headColour(colours, head)}`} @click=${() => toggle(head)}
              @dblclick=${() => this.change({ heads: weights.heads > 1 ? [head] : [] })}>head ${head}</button>`,
          )}
          ${
            weights.heads > 1
              ? html`<button type="button" class="toggle" aria-pressed=${mean} .style=${`--head: ${colours.ink}`}
                  @click=${() => this.change({ mean: !mean })}>mean</button>
                <button type="button" class="quiet" ?disabled=${this.state.heads.length === 0}
                  @click=${() => this.change({ heads: [] })}>all</button>`
              : nothing
          }
        </div>
      </div>`;
  }

  private legend() {
    const colours = palette();
    const steps = range(24).map((step) => colours.ramp(shareOf((step / 23) * this.most, this.most)));
    return html`<p class="legend"><span>weight</span><span>0</span>
      <svg viewBox="0 0 24 1" preserveAspectRatio="none" aria-hidden="true">${steps.map(
        (fill, step) => svg`<rect x=${step} width="1.05" height="1" fill=${fill} />`,
      )}</svg><span>${brief(this.most)}</span></p>`;
  }

  private strips() {
    const { queries, keys, toItself } = this.picture!;
    return html`
      <div class="strips">
        <span class="strip-name">${toItself ? "tokens" : "queries"}</span>
        <div class="strip" role="group" aria-label="Query positions">
          ${queries.map(
            (name, i) => html`<button type="button" class="chip" data-query=${i} data-key=${toItself ? i : nothing}
              tabindex=${i === (this.state.lock?.query ?? 0) ? 0 : -1} aria-pressed=${this.state.lock?.query === i}
              @pointerenter=${() => this.hover({ query: i, key: null })} @pointerleave=${() => this.hover(null)}
              @focus=${() => this.hover({ query: i, key: null })} @blur=${() => this.hover(null)}
              @click=${() => this.lock({ query: i, key: null })} @keydown=${moveFocus}>${cut(name, 40)}</button>`,
          )}
        </div>
        ${
          toItself
            ? nothing
            : html`<span class="strip-name">keys</span>
              <div class="strip">${keys.map((name, j) => html`<span class="chip" data-key=${j}>${cut(name, 40)}</span>`)}</div>`
        }
      </div>
    `;
  }

  private draw(): void {
    this.room = this.element.clientWidth;
    if (!this.picture || !this.element.isConnected) return;
    const { room } = this;
    const shown = this.shown();
    const gap = 28;
    // Panels are as wide as the names of the tokens take, where there is room.
    const { queries, keys } = this.picture;
    const least = Math.min(room, namedWidth(queries, keys.length > 64 ? [] : keys, shown.length > 8 ? 230 : 270, 900));
    const most = Math.max(1, Math.floor((room + gap) / (least + gap)));
    // Full rows: four panels are two by two where three would fit.
    const columns = Math.ceil(shown.length / Math.ceil(shown.length / most));
    const width = Math.min(
      Math.floor((room - gap * (columns - 1)) / columns),
      Math.max(least, shown.length === 1 ? 680 : 460),
    );
    this.element.style.setProperty("--columns", String(columns));
    for (const head of shown) this.panels.get(head)!.show(this.drawn(head), this.state.style, width, this.title(head));
  }

  /** Shows what is pointed at or locked: the only thing that runs while the pointer moves. */
  private look(): void {
    performance.mark("look");
    const place = this.place;
    const shown = this.shown();
    for (const head of shown) this.panels.get(head)?.highlight(place);
    this.colourChips(place);
    for (const each of this.element.querySelectorAll<HTMLElement>(".entropy"))
      each.textContent = this.entropyOf(Number(each.dataset.head));
    const readout = this.element.querySelector(".readout");
    if (readout) readout.textContent = this.readout(place);
    const table = this.element.querySelector<HTMLElement>(".row-table");
    if (table) render(place ? this.rowTable(place.query) : nothing, table);
    performance.measure("interaction", "look");
  }

  private readout(place: Place | null): string {
    const locked = this.state.lock ? " · locked, Esc unlocks" : "";
    if (!place) return "Point at a token or a cell; a click locks it.";
    const drawn = this.shown().map((head) => ({ head, drawn: this.drawn(head) }));
    if (place.key === null) return `from ${token(this.picture!.queries[place.query])}${locked}`;
    const values = drawn.map(({ head, drawn }, i) => {
      const said = spoken(drawn, place);
      return i === 0
        ? said.replace(/: ([^:]*)$/, ` · ${this.title(head)} $1`)
        : `${this.title(head)} ${/: ([^:]*)$/.exec(said)![1]}`;
    });
    return values.join(" · ") + locked;
  }

  /** Colours each token by the mean of the chosen heads' weights on it. */
  private colourChips(place: Place | null): void {
    const heads = this.chosen();
    const mean = new Map<number, number>();
    for (const head of place ? heads : [])
      this.eachOf(head, place!.query, (key, weight) => {
        mean.set(key, (mean.get(key) ?? 0) + weight / heads.length);
      });
    this.chips?.colour(place?.query ?? null, mean, this.most, palette());
  }

  private rowTable(query: number) {
    const { keys, queries } = this.picture!;
    const heads = this.shown();
    const from = html`from <b>${token(queries[query])}</b>`;
    if (keys.length <= MOST_COLUMNS)
      return html`<div class="scroll" tabindex="0" role="region" aria-label="The row in numbers"><table class="numbers">
        <thead><tr><th scope="col">${from}</th>${keys.map((key) => html`<th scope="col">${cut(key, 20)}</th>`)}</tr></thead>
        <tbody>${heads.map(
          (head) =>
            html`<tr><th scope="row">${this.title(head)}</th>${Array.from(
              this.row(head, query),
              (value) => html`<td>${written(value)}</td>`,
            )}</tr>`,
        )}</tbody></table></div>`;
    return html`<div class="scroll" tabindex="0" role="region" aria-label="The row in numbers"><table class="numbers largest">
      <thead><tr><th scope="col">${from}</th><th scope="col" colspan=${MOST_LARGEST}>looks most at</th></tr></thead>
      <tbody>${heads.map((head) => html`<tr><th scope="row">${this.title(head)}</th>${this.largest(head, query)}</tr>`)}
      </tbody></table></div>`;
  }

  private largest(head: number, query: number) {
    const found: { key: number; weight: number }[] = [];
    // A few of many: insertion costs less than sorting all.
    this.eachOf(head, query, (key, weight) => {
      if (found.length === MOST_LARGEST && weight <= found[MOST_LARGEST - 1].weight) return;
      const at = found.findIndex((each) => weight > each.weight);
      found.splice(at < 0 ? found.length : at, 0, { key, weight });
      found.length = Math.min(found.length, MOST_LARGEST);
    });
    return found.map(({ key, weight }) => html`<td>${cut(this.picture!.keys[key], 16)} ${written(weight)}</td>`);
  }
}
