// Meet attention: what one word looks at, an arc and a card for each head, and what changes when something is changed.
import { html, nothing, render, svg, type TemplateResult } from "lit-html";
import { keyed } from "lit-html/directives/keyed.js";
import { type Answer, askAnswer } from "../../api/answer.ts";
import { besides } from "../../api/ask.ts";
import type { Shown } from "../../app/export.ts";
import { cut, token } from "../../drawing/format.ts";
import { headColour, headDash, palette } from "../../drawing/palette.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import { toggled, unchanged } from "../../state/state.ts";
import type { Context, View } from "../view.ts";
import { whatIf } from "../what-if.ts";
import { type Arc, apart, type Box, between, boxOf, type Layout, within } from "./arcs.ts";
import { cards } from "./cards.ts";
import { best, firstQuery, type Met, metHeads } from "./heads.ts";
import { lookedAt, told } from "./told.ts";

const FAINTEST = 0.02; // of a weight that has an arc
const MOST_ARCS = 8; // of a head
const MOST_WORDS = 40; // that stand without gaps
const ROOM = 180; // pixels that arcs may rise above a row

export class MeetView implements View {
  readonly element = document.createElement("section");
  private before: Answer | null = null;
  private after: Answer | null = null;
  private context: Context | null = null;
  private room = 0;

  constructor() {
    this.element.className = "meet";
    new ResizeObserver(() => {
      if (this.element.clientWidth !== this.room && this.context) this.draw();
    }).observe(this.element);
  }

  async load({ state, model, layer, known }: Context, signal: AbortSignal): Promise<void> {
    const layers = besides(model, layer);
    const [before, after] = await Promise.all(
      [unchanged(state.a), state.a].map((input) => askAnswer(known, model, input, layers, signal)),
    );
    this.before = before;
    this.after = after;
  }

  show(context: Context): void {
    this.context = context;
    if (!this.after || !this.before) return;
    const { state } = context;
    const { picture } = this.after;
    const query = this.query;
    const met = metHeads(this.before, query, state.a.off);
    const all = picture.layers.reduce((sum, { weights }) => sum + weights.heads, 0);
    const word = token(picture.queries[query] ?? "");
    render(
      html`
        <div class="meet-card">
          <h2>What does <span class="asking">${word}</span> look at?</h2>
          <p class="lead">Attention is how a word takes in other words. ${told(this.after, met, query, all)} Switch one off, and see what changes.</p>
          <div class="meet-figure">
            <svg class="arcs" aria-hidden="true"></svg>
            ${picture.toItself ? this.words(picture.keys, true, met) : html`${this.words(picture.keys, false, met)}${this.queries(picture.queries)}`}
          </div>
          ${whatIf(context, picture.keys, "Click a word to ask from it, hide one, or write your own.")}
        </div>
        ${cards({ context, before: this.before, after: this.after, met, query })}
        <footer class="onward"><p class="note">Attention weights are not explanations by themselves: they say what was summed, and how much of it, not why.
          So cause something, and see whether the answer changes.</p>
          <p><button type="button" class="primary" @click=${() => context.change({ view: "steps", query })}>How is a weight computed? Step by step →</button>
          ${all > met.length ? html`<button type="button" @click=${() => context.change({ view: "atlas", query })}>All ${all} heads →</button>` : nothing}</p></footer>
      `,
      this.element,
    );
    this.draw();
  }

  private get query(): number {
    const last = this.after!.picture.queries.length - 1;
    return Math.max(0, Math.min(this.context!.state.query ?? firstQuery(this.before!), last));
  }

  /** The keys, each of which can be hidden; and asked from, where they are the queries too. */
  private words(names: string[], ask: boolean, met: Met[]): TemplateResult {
    const { state } = this.context!;
    const looked = lookedAt(this.after!, met, this.query);
    const { hidden } = state.a;
    const hide = (key: number) => this.context!.edit({ hidden: toggled(hidden, key).sort((a, b) => a - b) });
    const one = (key: number) => {
      const struck = hidden.includes(key);
      const by = looked.get(key);
      const classes = `word ${struck ? "struck" : ""} ${this.after!.special[key] ? "special" : ""} ${by ? "looked-at" : ""}`;
      const label = cut(names[key], 24);
      return html`<li class=${classes} data-key=${key} .style=${by ? `--head: ${by}` : ""}>
        ${
          ask
            ? html`<button type="button" class="ask" aria-pressed=${key === this.query} tabindex=${key === this.query ? 0 : -1}
              @click=${() => this.ask(key)} @keydown=${(event: KeyboardEvent) => this.moved(event, () => hide(key))}>${label}</button>`
            : html`<span class="ask">${label}</span>`
        }
        <button type="button" class="hide" aria-label=${`${struck ? "Show" : "Hide"} ${label}`} @click=${() => hide(key)}>${struck ? "show" : "hide"}</button></li>`;
    };
    const shown = this.shownKeys();
    const behind = names.length - 1 - shown.at(-1)!;
    return html`<ol class="words" aria-label=${ask ? "Words" : "Words that are attended to"}>${shown.map((key, at) => {
      const left = key - (at ? shown[at - 1] : -1) - 1;
      return html`${left ? this.gap(key - Math.ceil(left / 2), left, ask) : nothing}${one(key)}`;
    })}${behind ? this.gap(names.length - 1, behind, ask) : nothing}</ol>`;
  }

  /** Words that are left out of a long sequence; a click asks from one of them. */
  private gap(key: number, count: number, ask: boolean): TemplateResult {
    const label = `… ${count}`;
    return html`<li class="gap">${ask ? html`<button type="button" class="quiet" title="ask from one of the words left out" @click=${() => this.ask(key)}>${label}</button>` : html`<span class="quiet-text">${label}</span>`}</li>`;
  }

  /** All keys, or of a long sequence those that are looked at, and those around the word that asks. */
  private shownKeys(): number[] {
    const { picture } = this.after!;
    const count = picture.keys.length;
    if (count <= MOST_WORDS) return range(count);
    const met = metHeads(this.before!, this.query, this.context!.state.a.off);
    const looked = met.flatMap(({ layer, head }) => strongest(picture.layers[layer].weights.row(head, this.query)));
    const around = picture.toItself ? range(5).map((at) => this.query - 2 + at) : [0];
    const chosen = new Set([...looked, ...around, ...this.context!.state.a.hidden]);
    return [...chosen].filter((key) => key >= 0 && key < count).sort((a, b) => a - b);
  }

  private queries(names: string[]): TemplateResult {
    return html`<ol class="words asking-words" aria-label="Words that attend">${names.map(
      (
        name,
        at,
      ) => html`<li class="word" data-query=${at}><button type="button" class="ask" aria-pressed=${at === this.query} tabindex=${at === this.query ? 0 : -1}
        @click=${() => this.ask(at)} @keydown=${(event: KeyboardEvent) => this.moved(event, () => undefined)}>${cut(name, 24)}</button></li>`,
    )}</ol>`;
  }

  private ask(query: number): void {
    this.context!.change({ query });
  }

  private moved(event: KeyboardEvent, hide: () => void): void {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const word = (event.currentTarget as HTMLElement).closest("li")!;
    if (step) {
      const next = step > 0 ? word.nextElementSibling : word.previousElementSibling;
      next?.querySelector<HTMLElement>(".ask")?.focus();
    } else if (event.key === "Delete" || event.key === "Backspace") hide();
    else return;
    event.preventDefault();
  }

  // --- the arcs --------------------------------------------------------------------------------------------------------

  private draw(): void {
    this.room = this.element.clientWidth;
    const figure = this.element.querySelector<HTMLElement>(".meet-figure");
    if (!figure || !this.after || !this.element.isConnected) return;
    const { picture } = this.after;
    const layout = this.lay(figure);
    const origin = figure.getBoundingClientRect();
    const boxes = (name: "key" | "query"): Map<number, Box> =>
      new Map(
        [...figure.querySelectorAll<HTMLElement>(`[data-${name}]`)].map((each) => [
          Number(each.dataset[name]),
          boxOf(each.querySelector(".ask")!, origin),
        ]),
      );
    const keys = boxes("key");
    const from = (picture.toItself ? keys : boxes("query")).get(this.query);
    if (!from) return;
    const surface = figure.querySelector<SVGSVGElement>(".arcs")!;
    surface.setAttribute("viewBox", `0 0 ${origin.width} ${origin.height}`);
    const met = metHeads(this.before!, this.query, this.context!.state.a.off);
    const room =
      layout === "row"
        ? ROOM / 1.05
        : Math.max(30, origin.width - Math.max(...[...keys.values()].map(({ right }) => right)) - 60);
    const arc = (key: number, lane: number): Arc =>
      picture.toItself ? within(layout, from, keys.get(key)!, lane, room) : between(layout, from, keys.get(key)!, lane);
    render(this.curves(met, arc, origin.width, layout), surface as unknown as HTMLElement);
  }

  /** Words in a row where they fit, else in a column. */
  private lay(figure: HTMLElement): Layout {
    figure.dataset.layout = "row";
    const rows = [...figure.querySelectorAll<HTMLElement>(".words")];
    for (const size of figure.clientWidth < 600 ? ["middle"] : ["large", "middle", "small"]) {
      figure.dataset.size = size;
      if (rows.every((row) => row.scrollWidth <= figure.clientWidth)) return "row";
    }
    figure.dataset.layout = "column";
    return "column";
  }

  private curves(met: Met[], arc: (key: number, lane: number) => Arc, width: number, layout: Layout): TemplateResult {
    const { layers, title } = this.after!.picture;
    const colours = palette();
    const { off } = this.context!.state.a;
    // On a phone an arc's colour alone tells its head.
    const narrow = layout === "column" && width < 420;
    const drawn = met.map((each, at) => {
      const row = layers[each.layer].weights.row(each.head, this.query);
      const keys = strongest(row);
      const lane = at - (met.length - 1) / 2;
      const top = best(row);
      return {
        each,
        at,
        lane,
        row,
        keys,
        label: narrow ? top.weight.toFixed(2) : `${each.name} · ${top.weight.toFixed(2)}`,
        place: arc(top.key, lane),
      };
    });
    const labels = apart(
      drawn.map(({ label, place }) => ({ x: place.x, y: place.y, width: label.length * 7 + 18 })),
      24,
      width,
    );
    return svg`${keyed(
      `${title} ${this.query} ${off.join()}`,
      svg`<g>${drawn.map(
        ({ each, at, lane, row, keys }) =>
          svg`<g class=${off.includes(each.pair) ? "arc-off" : ""} stroke=${headColour(colours, each.colour)}>${keys.map(
            (
              key,
            ) => svg`<path d=${arc(key, lane).d} pathLength="1" class="arc" .style=${`animation-delay: ${at * 0.35}s`} fill="none"
            stroke-width=${(1 + 8.5 * row[key]).toFixed(1)} stroke-opacity=${(0.2 + 0.75 * row[key]).toFixed(2)} stroke-linecap="round" data-dash=${headDash(colours, each.colour)} />`,
          )}</g>`,
      )}</g>`,
    )}${drawn.map(
      ({ each, label }, at) =>
        svg`<g class="arc-label" transform="translate(${labels[at].x - labels[at].width / 2} ${labels[at].y - 12})">
          <rect width=${labels[at].width} height="24" rx="12" fill=${colours.paper} stroke=${headColour(colours, each.colour)} />
          <text x=${labels[at].width / 2} y="16.5" text-anchor="middle" fill=${headColour(colours, each.colour)}>${label}</text></g>`,
    )}` as unknown as TemplateResult;
  }

  // --- files -----------------------------------------------------------------------------------------------------------

  shown(): Shown | null {
    if (!this.after || !this.context) return null;
    const { picture } = this.after;
    const { queries, keys } = picture;
    const panels = metHeads(this.before!, this.query, this.context.state.a.off).map(({ layer, head, name, colour }) => {
      const { weights } = picture.layers[layer];
      return {
        title: name,
        drawn: { weights, head, colour, queries, keys, most: weights.complete ? 1 : weights.most },
      };
    });
    return {
      style: "lines",
      panels,
      heading: picture.title,
      about: aboutPicture(picture),
      place: { query: this.query, key: null },
    };
  }

  picture(): Picture | null {
    return this.after?.picture ?? null;
  }
}

/** The keys that a head has arcs to: the largest weights of a row, and at least the largest. */
function strongest(row: Float32Array): number[] {
  return range(row.length)
    .sort((a, b) => row[b] - row[a])
    .slice(0, MOST_ARCS)
    .filter((key, at) => at === 0 || row[key] >= FAINTEST);
}
