// The source above, the words said so far below, and lines between: what each word looked at before it was said.
import { html, nothing, render, svg, type TemplateResult } from "lit-html";
import { cut } from "../../drawing/format.ts";
import { range } from "../../drawing/weights.ts";
import { type Box, between, boxOf, type Layout } from "../meet/arcs.ts";

export interface Alignment {
  keys: string[];
  hidden: number[];
  words: { label: string; probability: number; ends: boolean }[];
  /** Of each word, [S]. */
  weights: Float32Array[];
  /** The word that stands out; null for all alike. */
  chosen: number | null;
  hide(key: number): void;
  choose(word: number): void;
}

const FAINTEST = 0.05; // of a weight that has a line

export class Lines {
  readonly element = document.createElement("div");
  private alignment: Alignment | null = null;

  constructor() {
    this.element.className = "meet-figure translation";
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(alignment: Alignment): void {
    this.alignment = alignment;
    const { keys, hidden, words, chosen } = alignment;
    render(
      html`<svg class="arcs" aria-hidden="true"></svg>
        <ol class="words" aria-label="Source">${keys.map((key, at) => {
          const struck = hidden.includes(at);
          return html`<li class=${struck ? "word struck" : "word"} data-key=${at}><span class="ask">${cut(key, 24)}</span>
            <button type="button" class="hide" aria-label=${`${struck ? "Show" : "Hide"} ${key}`} @click=${() => alignment.hide(at)}>${struck ? "show" : "hide"}</button></li>`;
        })}</ol>
        <ol class="words asking-words spoken" aria-label="Said" role="list">${
          words.length
            ? words.map(
                ({ label, probability, ends }, at) =>
                  html`<li class=${ends ? "mark" : "said-word"} data-query=${at}><button type="button" class="ask" aria-pressed=${at === chosen} @click=${() => alignment.choose(at)}>${cut(label, 24)}</button><small>${probability.toFixed(2)}</small></li>`,
              )
            : html`<li class="quiet-text">Nothing said yet.</li>`
        }</ol>`,
      this.element,
    );
    this.draw();
  }

  private draw(): void {
    if (!this.alignment || !this.element.isConnected) return;
    const layout = this.lay();
    const origin = this.element.getBoundingClientRect();
    const boxes = (selector: string): Box[] =>
      [...this.element.querySelectorAll<HTMLElement>(`${selector} .ask`)].map((each) => boxOf(each, origin));
    const surface = this.element.querySelector<SVGSVGElement>(".arcs")!;
    surface.setAttribute("viewBox", `0 0 ${origin.width} ${origin.height}`);
    render(this.curves(layout, boxes("[data-key]"), boxes("[data-query]")), surface as unknown as HTMLElement);
  }

  /** Source and target in rows where they fit, else in columns. */
  private lay(): Layout {
    this.element.dataset.layout = "row";
    const rows = [...this.element.querySelectorAll<HTMLElement>(".words")];
    for (const size of ["large", "middle"]) {
      this.element.dataset.size = size;
      if (rows.every((row) => row.scrollWidth <= this.element.clientWidth)) return "row";
    }
    this.element.dataset.layout = "column";
    return "column";
  }

  private curves(layout: Layout, keys: Box[], words: Box[]): TemplateResult {
    const { weights, chosen } = this.alignment!;
    return svg`<g>${words.map((from, word) =>
      range(keys.length).map((key) => {
        const weight = weights[word]?.[key] ?? 0;
        if (weight < FAINTEST) return nothing;
        const opacity = (0.2 + 0.75 * weight) * (chosen === null || chosen === word ? 1 : 0.25);
        return svg`<path class="line" d=${between(layout, from, keys[key], 0).d} fill="none" data-from=${word} data-to=${key}
          stroke-width=${(1 + 6 * weight).toFixed(1)} stroke-opacity=${opacity.toFixed(2)} stroke-linecap="round" />`;
      }),
    )}</g>` as unknown as TemplateResult;
  }
}
