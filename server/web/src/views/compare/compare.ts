// Two inputs or two models, side by side, and the difference where their lengths are the same.
import { html, nothing, render, svg, type TemplateResult } from "lit-html";
import { askAnswer } from "../../api/answer.ts";
import { besides } from "../../api/ask.ts";
import type { Shown } from "../../app/export.ts";
import type { Panel as Drawable, Drawn, Place, Style } from "../../drawing/drawing.ts";
import { cut, token, weight as written } from "../../drawing/format.ts";
import { palette } from "../../drawing/palette.ts";
import { Panel } from "../../drawing/panel.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import type { Context, View } from "../view.ts";
import { type Alignment, align, changedHeads, difference } from "./align.ts";
import { sidesOf } from "./other.ts";

const MOST_CHANGED = 6;

/** A place in one of the three panels: A, B and the difference. */
interface Seen extends Place {
  panel: number;
}

interface Side {
  name: string;
  picture: Picture;
  layer: number;
  /** Less than 0 is the mean. */
  head: number;
  panel: Panel;
}

export class CompareView implements View {
  readonly element = document.createElement("section");
  private pictures: Picture[] = [];
  private context: Context | null = null;
  private sides: Side[] = [];
  private readonly panels: Panel[];
  private hovered: Seen | null = null;
  private locked: Seen | null = null;
  /** The width that was drawn for. */
  private room = 0;
  private style: Style = "matrix";

  constructor() {
    this.element.className = "compare";
    this.panels = range(3).map(
      (panel) =>
        new Panel({
          hover: (place) => this.hover(place && { panel, ...place }),
          lock: (place) => this.lock({ panel, ...place }),
        }),
    );
    new ResizeObserver(() => {
      if (this.element.clientWidth !== this.room) this.draw();
    }).observe(this.element);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.element.isConnected) this.lock(null);
    });
  }

  async load(context: Context, signal: AbortSignal): Promise<void> {
    const { state, known, modelOf, layer } = context;
    if (!state.b) {
      const sides = await sidesOf(context, signal);
      if (signal.aborted) return;
      context.settle(sides);
      return this.load({ ...context, state: { ...state, ...sides } }, signal);
    }
    const inputs = [state.a, state.b];
    this.pictures = await Promise.all(
      inputs.map(async (input) => {
        const model = modelOf(input);
        const own = model.manifest.layers.find(({ name }) => name === layer.name) ?? model.manifest.layers.at(-1)!;
        return (await askAnswer(known, model, input, besides(model, own), signal)).picture;
      }),
    );
  }

  show(context: Context): void {
    const { state, layer } = context;
    this.context = context;
    this.style = state.style ?? "matrix";
    this.sides = this.pictures.map((picture, i) => {
      const at = picture.layers.findIndex(({ name }) => name === layer.name);
      const { weights } = picture.layers.at(at)!;
      const mean = weights.heads > 1 && weights.complete ? -1 : 0;
      const head = Math.min(state.sides?.[i] ?? mean, weights.heads - 1);
      return {
        name: i ? "B" : "A",
        picture,
        layer: at < 0 ? picture.layers.length - 1 : at,
        head,
        panel: this.panels[i],
      };
    });
    this.locked = null;
    this.update();
  }

  shown(): Shown | null {
    if (!this.sides.length) return null;
    const [a, b] = this.sides;
    return {
      style: this.style,
      panels: this.panelsShown(),
      heading: `${a.picture.title} / ${b.picture.title}`,
      about: [a, b]
        .map(({ name, picture, layer }) => `${name}: ${aboutPicture(picture, picture.layers[layer].name)}`)
        .join("; "),
      place: this.place,
    };
  }

  picture(): Picture | null {
    return this.pictures[0] ?? null;
  }

  panelsShown(): Drawable[] {
    const drawn = this.sides.map((side) => ({ title: `${side.name}: ${side.picture.title}`, drawn: drawnOf(side) }));
    const difference = this.difference();
    return typeof difference === "string" ? drawn : [...drawn, { title: "B − A", drawn: difference }];
  }

  private get seen(): Seen | null {
    return this.hovered ?? this.locked;
  }

  /** The place that is looked at, where it is the same in all. */
  private get place(): Place | null {
    const places = range(3).map((panel) => this.placeIn(panel));
    return places.every((place) => place && place.query === places[0]!.query) ? places[0] : null;
  }

  private hover(place: Seen | null): void {
    if (this.locked) return;
    this.hovered = place;
    this.look();
  }

  /** A second click at the same place unlocks it. */
  private lock(place: Seen | null): void {
    this.hovered = null;
    this.locked = JSON.stringify(place) === JSON.stringify(this.locked) ? null : place;
    this.look();
  }

  /** What is looked at in one panel, in the positions of another: null where it has no counterpart. */
  private placeIn(panel: number): Place | null {
    const { seen } = this;
    if (!seen || seen.panel === panel) return seen;
    const [a, b] = this.sides.map(({ picture }) => picture);
    const moved = (alignment: Alignment, at: number) => {
      const found = seen.panel === 2 ? at : alignment.findIndex((pair) => pair[seen.panel] === at);
      return found < 0 ? null : panel === 2 ? found : alignment[found][panel];
    };
    const query = moved(align(a.queries, b.queries), seen.query);
    const key = seen.key === null ? null : moved(align(a.keys, b.keys), seen.key);
    return query === null ? null : { query, key };
  }

  /** The difference at the tokens that both have, or why there is none. */
  private difference(): Drawn | string {
    const [a, b] = this.sides.map(drawnOf);
    if (!a.weights.complete || !b.weights.complete)
      return "Of sequences this long the page has the largest weights only, so no difference is drawn.";
    const queries = align(a.queries, b.queries);
    const keys = align(a.keys, b.keys);
    if (!queries.length || !keys.length) return "The two have no token in common, so there is no difference to draw.";
    const weights = difference(a.weights, a.head, b.weights, b.head, queries, keys);
    const name = (one: string, other: string) => (one === other ? one : `${one} / ${other}`);
    return {
      weights,
      head: 0,
      colour: null,
      queries: queries.map(([i, k]) => name(a.queries[i], b.queries[k])),
      keys: keys.map(([j, l]) => name(a.keys[j], b.keys[l])),
      most: weights.largest || 1,
      difference: true,
    };
  }

  /** The heads that changed most, each to be looked at. */
  private changed(): TemplateResult | typeof nothing {
    const [a, b] = this.sides.map(({ picture }) => picture);
    const heads = changedHeads(a, b).slice(0, MOST_CHANGED);
    if (heads.length < 2) return nothing;
    return html`<p class="changed-heads"><span class="quiet-text">heads that changed most</span>${heads.map(
      ({ layer, head, change }) =>
        html`<button type="button" class="pill" aria-pressed=${this.sides.every((side) => side.layer === layer && side.head === head)}
          @click=${() => this.context!.change({ layer: a.layers[layer].name, sides: [head, head] })}>${a.layers.length > 1 ? `layer ${a.layers[layer].name} ` : ""}head ${head} <b>${change.toFixed(2)}</b></button>`,
    )}</p>`;
  }

  private update(): void {
    const difference = this.difference();
    const drawn = typeof difference !== "string";
    render(
      html`${this.changed()}<div class="panels">${this.sides.map(
        (
          side,
          i,
        ) => html`<figure><figcaption><b>${side.name}</b> ${cut(side.picture.title, 60)} <span class="quiet-text">${side.picture.model}</span></figcaption>
          <label class="field inline">head <select aria-label=${`Head of ${side.name}`} @change=${(event: Event) => {
            const chosen = Number((event.target as HTMLSelectElement).value);
            const [first, second] = this.sides.map(({ head }) => head);
            this.context!.change({ sides: i ? [first, chosen] : [chosen, second] });
          }}>
            ${side.picture.layers[side.layer].weights.complete ? html`<option value="-1" ?selected=${side.head < 0}>mean</option>` : nothing}
            ${range(side.picture.layers[side.layer].weights.heads).map((head) => html`<option value=${head} ?selected=${head === side.head}>head ${head}</option>`)}
          </select></label>
          ${side.panel.element}
          ${side.picture.predictions.length ? html`<p class="said">${side.picture.predictions.slice(0, 6).map(({ name, label, probability }) => html`<span>${name} <b>${label}</b> ${probability.toFixed(2)}</span> `)}</p>` : nothing}
        </figure>`,
      )}
      ${drawn ? html`<figure><figcaption><b>B − A</b> <span class="quiet-text">${difference.keys.length < Math.max(...this.sides.map(({ picture }) => picture.keys.length)) ? "at the tokens of both" : ""}</span></figcaption>${scale(difference.most)}${this.panels[2].element}</figure>` : nothing}
      </div>
      ${drawn ? nothing : html`<p class="aside">${difference}</p>`}
      <div class="row-table"></div>
      <p class="note">Attention weights are not explanations by themselves, and neither is a difference of two.</p>`,
      this.element,
    );
    this.draw();
    this.look();
  }

  private draw(): void {
    this.room = this.element.clientWidth;
    if (!this.sides.length || !this.element.isConnected) return;
    const difference = this.difference();
    const drawn = typeof difference !== "string";
    const count = drawn ? 3 : 2;
    const { room } = this;
    const columns = Math.max(1, Math.min(count, Math.floor((room + 28) / 290)));
    const width = Math.min(Math.floor((room - 28 * (columns - 1)) / columns), 480);
    this.element.style.setProperty("--columns", String(columns));
    for (const side of this.sides) side.panel.show(drawnOf(side), this.style, width, side.name);
    if (drawn) this.panels[2].show(difference, "matrix", width, "Difference");
  }

  private look(): void {
    this.panels.forEach((panel, at) => {
      panel.highlight(this.placeIn(at));
    });
    const table = this.element.querySelector<HTMLElement>(".row-table");
    const place = this.place;
    if (table) render(place ? this.table(place.query) : nothing, table);
  }

  private table(query: number) {
    const [a, b] = this.sides.map(drawnOf);
    const same = a.weights.keys === b.weights.keys && query < Math.min(a.weights.queries, b.weights.queries);
    if (!same || a.weights.keys > 16) return nothing;
    const rows = [a.weights.row(a.head, query), b.weights.row(b.head, query)];
    return html`<div class="scroll" tabindex="0" role="region" aria-label="The row in numbers"><table class="numbers">
      <thead><tr><th scope="col">from <b>${token(a.queries[query])}</b></th>${a.keys.map((key, j) => html`<th scope="col">${cut(key, 16)}${key === b.keys[j] ? "" : html` / ${cut(b.keys[j], 16)}`}</th>`)}</tr></thead>
      <tbody>${rows.map((row, i) => html`<tr><th scope="row">${i ? "B" : "A"}</th>${Array.from(row, (value) => html`<td>${written(value)}</td>`)}</tr>`)}
        <tr><th scope="row">B − A</th>${Array.from(rows[0], (value, j) => html`<td>${(rows[1][j] - value).toFixed(4)}</td>`)}</tr></tbody></table></div>`;
  }
}

function drawnOf({ picture, layer, head }: Side): Drawn {
  const { weights } = picture.layers[layer];
  const { queries, keys } = picture;
  if (head >= 0) return { weights, head, colour: head, queries, keys, most: 1 };
  return { weights: weights.mean(range(weights.heads)), head: 0, colour: null, queries, keys, most: 1 };
}

/** The scale of a difference, from less in B to more in B. */
function scale(most: number): TemplateResult {
  const colours = palette();
  return html`<p class="legend"><span>less in B −${most.toFixed(2)}</span>
    <svg viewBox="0 0 24 1" preserveAspectRatio="none" aria-hidden="true">${range(24).map(
      (step) => svg`<rect x=${step} width="1.05" height="1" fill=${colours.difference((step / 23) * 2 - 1)} />`,
    )}</svg><span>+${most.toFixed(2)} more in B</span></p>`;
}
