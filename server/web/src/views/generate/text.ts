// The text so far: the prompt, what was written behind it, and arcs to what one token read.
import { html, render, svg, type TemplateResult } from "lit-html";
import { classMap } from "lit-html/directives/class-map.js";
import { shareOf } from "../../drawing/drawing.ts";
import { moveFocus } from "../../drawing/focus.ts";
import { cut, share } from "../../drawing/format.ts";
import { inkOn, palette } from "../../drawing/palette.ts";
import { type Box, boxOf, within } from "../meet/arcs.ts";
import { strongest } from "./reading.ts";

export interface Text {
  prompt: string[];
  written: { label: string; ends: boolean }[];
  hidden: number[];
  /** The place among those written whose row is shown, and its row [S]; null before anything was written. */
  chosen: { at: number; row: Float32Array } | null;
  hide(key: number): void;
  choose(at: number): void;
}

const MOST_ARCS = 8;
const FAINTEST = 0.03; // of a weight that has an arc
const ROOM = 52; // pixels that an arc may rise

export class WrittenText {
  readonly element = document.createElement("div");
  private text: Text | null = null;

  constructor() {
    this.element.className = "meet-figure written-figure";
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(text: Text): void {
    this.text = text;
    const { prompt, written, chosen } = text;
    const focused = prompt.length + (chosen?.at ?? 0);
    render(
      html`<svg class="arcs" aria-hidden="true"></svg>
        <div class="written" role="group" aria-label="The prompt, and what was written">
          ${prompt.map((name, at) => this.word(name, at, focused === at || (!written.length && at === 0)))}
          ${written.map(({ label, ends }, at) => this.said(label, at, ends, focused === prompt.length + at))}
        </div>`,
      this.element,
    );
    this.draw();
  }

  /** A word of the prompt, which can be hidden. */
  private word(name: string, at: number, focused: boolean): TemplateResult {
    const struck = this.text!.hidden.includes(at);
    const label = `${struck ? "Show" : "Hide"} ${name.trim()}${this.told(at)}`;
    return html`<button type="button" class=${classMap({ chip: true, struck })} data-key=${at} aria-label=${label} aria-pressed=${struck} .style=${this.shade(at)}
      tabindex=${focused ? 0 : -1} @keydown=${moveFocus} @click=${() => this.text!.hide(at)}>${cut(name, 24)}</button>`;
  }

  private said(name: string, at: number, ends: boolean, focused: boolean): TemplateResult {
    const { prompt, chosen, choose } = this.text!;
    const key = prompt.length + at;
    return html`<button type="button" class=${classMap({ chip: true, own: true, mark: ends, from: chosen?.at === at })} data-key=${key} aria-pressed=${chosen?.at === at}
      aria-label=${`${name.trim()}${this.told(key)}`} .style=${this.shade(key)} tabindex=${focused ? 0 : -1} @keydown=${moveFocus} @click=${() => choose(at)}>${cut(name, 24)}</button>`;
  }

  private told(key: number): string {
    const weight = this.text!.chosen?.row[key];
    return weight === undefined ? "" : `, ${share(weight)}`;
  }

  /** The colour of a weight, by the largest of the row. */
  private shade(key: number): string {
    const row = this.text!.chosen?.row;
    if (!row || key >= row.length) return "";
    const part = shareOf(row[key], Math.max(...row, 1e-9));
    if (part < 0.01) return "";
    const colour = palette().ramp(part);
    return `background-color: ${colour}; color: ${inkOn(colour)}`;
  }

  private draw(): void {
    if (!this.text || !this.element.isConnected) return;
    const { chosen, prompt } = this.text;
    const origin = this.element.getBoundingClientRect();
    const surface = this.element.querySelector<SVGSVGElement>(".arcs")!;
    surface.setAttribute("viewBox", `0 0 ${origin.width} ${origin.height}`);
    const box = (key: number): Box => boxOf(this.element.querySelector(`[data-key="${key}"]`)!, origin);
    const arcs = chosen
      ? strongest(chosen.row, MOST_ARCS, FAINTEST).map((key) => {
          const weight = chosen.row[key];
          return svg`<path class="line" d=${curve(box(prompt.length + chosen.at), box(key))} fill="none" data-to=${key}
            stroke-width=${(1 + 5 * weight).toFixed(1)} stroke-opacity=${(0.25 + 0.7 * weight).toFixed(2)} stroke-linecap="round" />`;
        })
      : [];
    render(svg`<g>${arcs}</g>`, surface as unknown as HTMLElement);
  }
}

/** Above the words of one line; else from the top of the one to the bottom of the other. */
function curve(from: Box, to: Box): string {
  if (Math.abs(from.top - to.top) < 4) return within("row", from, to, 0, ROOM).d;
  const [a, b] = [(from.left + from.right) / 2, (to.left + to.right) / 2];
  const half = (from.top + to.bottom) / 2;
  return `M${a},${from.top - 2}C${a},${half},${b},${half},${b},${to.bottom + 2}`;
}
