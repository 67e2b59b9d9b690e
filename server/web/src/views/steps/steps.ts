// Step by step: one stage a screen, for one query position and one head.
import { html, nothing, render } from "lit-html";
import { askAnswer, askStages, besides } from "../../api/ask.ts";
import type { Shown } from "../../app/export.ts";
import { moveFocus } from "../../drawing/focus.ts";
import { cut } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import type { Picture } from "../../drawing/picture.ts";
import { tips } from "../../drawing/tip.ts";
import { range } from "../../drawing/weights.ts";
import { layerChoice } from "../heads/layers.ts";
import { firstQuery } from "../meet/heads.ts";
import type { Context, View } from "../view.ts";
import type { Scene } from "./scene.ts";
import { STAGES } from "./stages.ts";

export class StepsView implements View {
  readonly element = document.createElement("section");
  private scene: Scene | null = null;

  constructor() {
    this.element.className = "steps";
    tips(this.element);
  }

  async load({ state, model, layer, known }: Context, signal: AbortSignal): Promise<void> {
    const answer = await askAnswer(known, model, state.a, besides(model, layer), signal);
    const { picture } = answer;
    const query = Math.max(0, Math.min(state.query ?? firstQuery(answer), picture.queries.length - 1));
    const head = Math.min(state.head, layer.heads - 1);
    const sizes: [number, number] = [picture.queries.length, picture.keys.length];
    const stages = await askStages(known, model, state.a, layer, query, head, sizes, signal);
    this.scene = { model, layer, input: state.a, picture, stages, head };
  }

  pressed(event: KeyboardEvent, context: Context): void {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) this.go(context, context.state.step + step);
    else if (/^[1-9]$/.test(event.key)) this.go(context, Number(event.key) - 1);
  }

  private go({ change }: Context, step: number): void {
    if (step < 0 || step >= STAGES.length) return;
    change({ step });
    document.getElementById("stage-title")?.focus({ preventScroll: true });
  }

  show(context: Context): void {
    const { scene } = this;
    if (!scene) return;
    const step = Math.min(context.state.step, STAGES.length - 1);
    const stage = STAGES[step];
    const { picture, stages, head } = scene;
    const colours = palette();
    const go = (to: number) => () => this.go(context, to);
    render(
      html`
        <nav class="pipeline" aria-label="Stages"><ol>${STAGES.map(
          ({ name, symbol }, i) =>
            html`<li><button type="button" class=${i < step ? "done" : ""} aria-current=${i === step ? "step" : nothing} @click=${go(i)}><span class="symbol" aria-hidden="true">${symbol}</span><span class="stage-name">${name}</span></button></li>`,
        )}</ol></nav>
        <div class="turn"><button type="button" ?disabled=${step === 0} @click=${go(step - 1)}>← Back</button>
          <button type="button" class="primary" ?disabled=${step === STAGES.length - 1} @click=${go(step + 1)}>${step < STAGES.length - 1 ? `${STAGES[step + 1].name} →` : "The end"}</button></div>
        ${layerChoice(
          picture.layers,
          Math.max(
            0,
            picture.layers.findIndex(({ name }) => name === scene.layer.name),
          ),
          (at) => context.change({ layer: picture.layers[at].name, head: 0 }),
        )}
        <div class="strips"><span class="strip-name">query</span><div class="strip" role="group" aria-label="The query position">
          ${picture.queries.map(
            (
              name,
              i,
            ) => html`<button type="button" class=${`chip ${i === stages.query ? "from" : ""}`} aria-pressed=${i === stages.query} tabindex=${i === stages.query ? 0 : -1} @keydown=${moveFocus}
              @click=${() => context.change({ query: i })}>${cut(name, 40)}</button>`,
          )}</div>
          ${
            stages.q.length > 1
              ? html`<span class="strip-name">head</span><div class="strip" role="group" aria-label="The head">${range(
                  stages.q.length,
                ).map(
                  (each) =>
                    html`<button type="button" class="chip" aria-pressed=${each === head} @click=${() => context.change({ head: each })}><span class="dot" .style=${`--head: ${headColour(colours, each)}`}></span>${each}</button>`,
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
      `,
      this.element,
    );
    // On a narrow screen the pipeline scrolls by itself, not the page.
    const pipeline = this.element.querySelector(".pipeline")!;
    const current = pipeline.querySelectorAll<HTMLElement>("li")[step];
    pipeline.scrollLeft = current.offsetLeft - (pipeline.clientWidth - current.offsetWidth) / 2;
  }

  shown(): Shown | null {
    if (!this.scene) return null;
    const { picture, layer, head, stages } = this.scene;
    const { weights } = picture.layers.find(({ name }) => name === layer.name)!;
    const { queries, keys } = picture;
    const panels = [
      {
        title: `layer ${layer.name} head ${head}`,
        drawn: { weights, head, colour: head, queries, keys, most: weights.complete ? 1 : weights.most },
      },
    ];
    return { style: "matrix", panels, heading: picture.title, place: { query: stages.query, key: null } };
  }

  picture(): Picture | null {
    return this.scene?.picture ?? null;
  }
}
