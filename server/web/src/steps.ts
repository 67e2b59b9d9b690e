// Step by step: one stage a screen, for one query position and one head.
import { html, nothing, render } from "lit-html";
import { moveFocus } from "./focus.ts";
import { cut } from "./format.ts";
import { headColour, palette } from "./palette.ts";
import type { Scene } from "./scene.ts";
import { STAGES } from "./stages.ts";
import { tips } from "./tip.ts";
import { range } from "./weights.ts";

export interface StepsEvents {
  step(step: number): void;
  head(head: number): void;
  query(query: number): void;
}

export class StepsView {
  readonly element = document.createElement("section");

  constructor(private readonly events: StepsEvents) {
    this.element.className = "steps";
    tips(this.element);
  }

  show(scene: Scene, step: number): void {
    const stage = STAGES[step];
    const { picture, stages, head } = scene;
    const colours = palette();
    const go = (to: number) => () => this.events.step(to);
    render(
      html`
        <nav class="pipeline" aria-label="Stages"><ol>${STAGES.map(
          ({ name, symbol }, i) =>
            html`<li><button type="button" class=${i < step ? "done" : ""} aria-current=${i === step ? "step" : nothing} @click=${go(i)}><span class="symbol" aria-hidden="true">${symbol}</span><span class="stage-name">${name}</span></button></li>`,
        )}</ol></nav>
        <div class="strips"><span class="strip-name">query</span><div class="strip" role="group" aria-label="The query position">
          ${picture.queries.map(
            (
              name,
              i,
            ) => html`<button type="button" class=${`chip ${i === stages.query ? "from" : ""}`} aria-pressed=${i === stages.query} tabindex=${i === stages.query ? 0 : -1} @keydown=${moveFocus}
              @click=${() => this.events.query(i)}>${cut(name, 40)}</button>`,
          )}</div>
          ${
            stages.q.length > 1
              ? html`<span class="strip-name">head</span><div class="strip" role="group" aria-label="The head">${range(
                  stages.q.length,
                ).map(
                  (each) =>
                    html`<button type="button" class="chip" aria-pressed=${each === head} @click=${() => this.events.head(each)}><span class="dot" .style=${`--head: ${headColour(colours, each)}`}></span>${each}</button>`,
                )}</div>`
              : nothing
          }
        </div>
        <article class="stage-card" aria-labelledby="stage-title">
          <header>
            <p class="count">${step + 1} / ${STAGES.length}</p>
            <h2 id="stage-title" tabindex="-1">${stage.name}</h2>
            <p class="lead">${stage.lead(scene)}</p>
            <div class="formula" tabindex="0" role="region" aria-label="Formula">${stage.formula(scene)}</div>
            <p class="shapes">${stage.shapes(scene).map(([name, shape]) => html`<span><i>${name}</i> [${shape.map((each) => each || "any").join(" × ")}]</span>`)}</p>
          </header>
          <div class="stage-figure">${stage.figure(scene)}</div>
        </article>
        <div class="turn"><button type="button" ?disabled=${step === 0} @click=${go(step - 1)}>← Back</button>
          <button type="button" class="primary" ?disabled=${step === STAGES.length - 1} @click=${go(step + 1)}>${step < STAGES.length - 1 ? `${STAGES[step + 1].name} →` : "The end"}</button></div>
      `,
      this.element,
    );
    // On a narrow screen the pipeline scrolls by itself, not the page.
    const pipeline = this.element.querySelector(".pipeline")!;
    const current = pipeline.querySelectorAll<HTMLElement>("li")[step];
    pipeline.scrollLeft = current.offsetLeft - (pipeline.clientWidth - current.offsetWidth) / 2;
  }
}
