// Steps: the article's tracks on one table that stays while numbers move on, and every stage on a screen of its own.
import { html, nothing, render, type TemplateResult } from "lit-html";
import { askAnswer } from "../../api/answer.ts";
import { isCross } from "../../api/api.ts";
import { askStages, besides } from "../../api/ask.ts";
import type { Shown } from "../../app/export.ts";
import { moveFocus } from "../../drawing/focus.ts";
import { cut } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { tips } from "../../drawing/tip.ts";
import { range } from "../../drawing/weights.ts";
import { example } from "../../state/examples.ts";
import { TRACKS, UNCHOSEN } from "../../state/state.ts";
import { layerChoice } from "../heads/layers.ts";
import { firstQuery } from "../meet/heads.ts";
import type { Context, View } from "../view.ts";
import { temperatureOf } from "../what-if.ts";
import { header, rowsOf } from "./rows.ts";
import type { Scene } from "./scene.ts";
import { STAGES } from "./stages.ts";
import { askTour, type Tour } from "./tour.ts";
import { SCREENS, TRACK_NAMES } from "./tracks.ts";

export class StepsView implements View {
  readonly element = document.createElement("section");
  private scene: Scene | null = null;
  private tour: Tour | null = null;

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
    const tour =
      state.track === "stages"
        ? null
        : await askTour({ known, model, layer, input: state.a, answer, query, head }, signal);
    this.scene = { model, layer, input: state.a, picture, stages, head };
    this.tour = tour;
  }

  pressed(event: KeyboardEvent, context: Context): void {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) this.go(context, this.at(context) + step);
    else if (/^[1-9]$/.test(event.key)) this.go(context, Number(event.key) - 1);
  }

  private count({ state }: Context): number {
    return state.track === "stages" ? STAGES.length : SCREENS[state.track].length;
  }

  private at(context: Context): number {
    return Math.min(context.state.step, this.count(context) - 1);
  }

  private go(context: Context, step: number): void {
    if (step < 0 || step >= this.count(context)) return;
    context.change({ step });
    document.getElementById("stage-title")?.focus({ preventScroll: true });
  }

  show(context: Context): void {
    const { scene, tour } = this;
    if (!scene) return;
    const step = this.at(context);
    const { state, change } = context;
    const all = state.track === "stages" || !tour;
    render(
      html`
        <div class="steps-bar">
          <div class="segmented" role="group" aria-label="Track">${TRACKS.map(
            (track) =>
              html`<button type="button" aria-pressed=${state.track === track} @click=${() => change({ track, step: 0 })}>${TRACK_NAMES[track]}</button>`,
          )}</div>
          ${this.turns(context, step)}
        </div>
        ${all ? this.pipeline(context, step) : nothing}
        ${this.choices(context, scene)}
        ${all ? stageCard(scene, step) : this.screen(context, tour, step)}
      `,
      this.element,
    );
    const pipeline = this.element.querySelector(".pipeline");
    if (!pipeline) return;
    // On a narrow screen the pipeline scrolls by itself, not the page.
    const current = pipeline.querySelectorAll<HTMLElement>("li")[step];
    pipeline.scrollLeft = current.offsetLeft - (pipeline.clientWidth - current.offsetWidth) / 2;
  }

  private turns(context: Context, step: number): TemplateResult {
    const last = this.count(context) - 1;
    return html`<div class="turn"><button type="button" ?disabled=${step === 0} @click=${() => this.go(context, step - 1)}>← Back</button>
      <span class="count">${step + 1} / ${last + 1}</span>
      <button type="button" class="primary" ?disabled=${step === last} @click=${() => this.go(context, step + 1)}>Next →</button></div>`;
  }

  private pipeline(context: Context, step: number): TemplateResult {
    return html`<nav class="pipeline" aria-label="Stages"><ol>${STAGES.map(
      ({ name, symbol }, i) =>
        html`<li><button type="button" class=${i < step ? "done" : ""} aria-current=${i === step ? "step" : nothing} @click=${() => this.go(context, i)}><span class="symbol" aria-hidden="true">${symbol}</span><span class="stage-name">${name}</span></button></li>`,
    )}</ol></nav>`;
  }

  /** The choice of a layer, a query, a head, and what may be tried. */
  private choices({ state, change, edit }: Context, { picture, layer, stages, head }: Scene): TemplateResult {
    const colours = palette();
    const at = picture.layers.findIndex(({ name }) => name === layer.name);
    return html`<div class="strips"><span class="strip-name">query</span><div class="strip" role="group" aria-label="The query position">
        ${picture.queries.map(
          (
            name,
            i,
          ) => html`<button type="button" class=${`chip ${i === stages.query ? "from" : ""}`} aria-pressed=${i === stages.query}
            tabindex=${i === stages.query ? 0 : -1} @keydown=${moveFocus} @click=${() => change({ query: i })}>${cut(name, 40)}</button>`,
        )}</div>
        ${
          stages.q.length > 1
            ? html`<span class="strip-name">head</span><div class="strip" role="group" aria-label="The head">${range(
                stages.q.length,
              ).map(
                (each) =>
                  html`<button type="button" class="chip" aria-pressed=${each === head} @click=${() => change({ head: each })}><span class="dot" .style=${`--head: ${headColour(colours, each)}`}></span>${each}</button>`,
              )}</div>`
            : nothing
        }
        <span class="strip-name">what if</span><div class="strip">
          ${layerChoice(picture.layers, Math.max(0, at), (to) => change({ layer: picture.layers[to].name, head: 0 }))}
          ${temperatureOf(state.a.temperature, (temperature) => edit({ temperature }))}
          ${picture.toItself ? html`<label class="check"><input type="checkbox" .checked=${state.a.causal !== "none"} @change=${() => edit({ causal: state.a.causal === "none" ? "top_left" : "none" })}> hide the future</label>` : nothing}
          ${state.track === "stages" ? nothing : html`<label class="check"><input type="checkbox" .checked=${state.exact} @change=${() => change({ exact: !state.exact })}> all digits</label>`}</div>
      </div>`;
  }

  /** One screen of a track: what it says, and the table with the rows so far. */
  private screen(context: Context, tour: Tour, step: number): TemplateResult {
    const { state, change } = context;
    if (state.track === "stages") return html``;
    const { title, says, rows, news } = SCREENS[state.track][step];
    const shown = { tour, exact: state.exact, head: (head: number) => change({ head }) };
    return html`<article class="track" aria-labelledby="stage-title">
      <header><h2 id="stage-title" tabindex="-1">${title}</h2><p class="lead">${says(tour)}</p>${this.cross(context, tour)}</header>
      <div class="scroll" tabindex="0" role="region" aria-label="The numbers, a column a word"><table class="flow">
        <thead>${header(tour)}</thead>
        <tbody>${rows.map((name, at) => rowsOf(name, shown, at >= rows.length - news))}</tbody></table></div>
      ${tour.stages.shown.length < tour.picture.keys.length ? html`<p class="aside">${tour.stages.shown.length} of ${tour.picture.keys.length} keys: those that weigh most for head ${tour.head}.</p>` : nothing}
      <p class="note">Attention weights are not explanations by themselves: they say what was summed, and how much of it; not why the
        model answers as it does.</p></article>`;
  }

  /** The way to a model of two sequences, on their track. */
  private cross({ state, models, change }: Context, { cross }: Tour): TemplateResult | typeof nothing {
    const other = models.find(isCross);
    if (state.track !== "two" || cross || !other) return nothing;
    return html`<button type="button" class="link" @click=${() => change({ a: example(other), ...UNCHOSEN })}>With ${other.name}, which reads a source →</button>`;
  }

  shown(): Shown | null {
    if (!this.scene) return null;
    const { picture, layer, head, stages } = this.scene;
    const { weights } = picture.layers.find(({ name }) => name === layer.name)!;
    const { queries, keys } = picture;
    const drawn = { weights, head, colour: head, queries, keys, most: weights.complete ? 1 : weights.most };
    const panels = [{ title: `layer ${layer.name} head ${head}`, drawn }];
    return {
      style: "matrix",
      panels,
      heading: picture.title,
      about: aboutPicture(picture, layer.name),
      place: { query: stages.query, key: null },
    };
  }

  picture(): Picture | null {
    return this.scene?.picture ?? null;
  }
}

/** One stage on a screen of its own. */
function stageCard(scene: Scene, step: number): TemplateResult {
  const stage = STAGES[step];
  return html`<article class="stage-card" aria-labelledby="stage-title">
    <header>
      <h2 id="stage-title" tabindex="-1">${stage.name}</h2>
      <p class="lead">${stage.lead(scene)}</p>
      <div class="formula" tabindex="0" role="region" aria-label="Formula">${stage.formula(scene)}</div>
      <p class="shapes">${stage.shapes(scene).map(([name, shape]) => html`<span><i>${name}</i> [${shape.map((each) => each || "any").join(" × ")}]</span>`)}</p>
    </header>
    <div class="stage-figure">${stage.figure(scene)}</div>
  </article>`;
}
