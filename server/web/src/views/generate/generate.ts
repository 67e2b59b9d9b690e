// Generation: a decoder goes on with a text, token by token, and a click on a token shows what it read.
import { html, nothing, render, type TemplateResult } from "lit-html";
import type { Api } from "../../api/api.ts";
import { titleOf } from "../../api/ask.ts";
import { Generation, nextToken, type Written } from "../../api/generation.ts";
import type { Shown } from "../../app/export.ts";
import { cut, share, token } from "../../drawing/format.ts";
import { aboutPicture, type Picture } from "../../drawing/picture.ts";
import { range, Weights } from "../../drawing/weights.ts";
import { toggled } from "../../state/state.ts";
import type { Context, View } from "../view.ts";
import { whatIf } from "../what-if.ts";
import { bySentence, joined, nameOf, type ReadBy, readBy, rowOf, strongest } from "./reading.ts";
import { WrittenText } from "./text.ts";

const FURTHER = 20; // tokens that are written in a row
const PAUSE = 120; // milliseconds between tokens
const KEPT = 6; // generations
const DRAWS = [0.5, 0.8, 1, 1.5];
const NAMED = 5; // tokens that were read most

export class GenerateView implements View {
  readonly element = document.createElement("section");
  private readonly text = new WrittenText();
  /** By what was asked, the last one at the end. */
  private readonly kept = new Map<string, Generation>();
  private generation: Generation | null = null;
  private context: Context | null = null;
  /** How many tokens of the generation are shown. */
  private count = 0;
  /** What writes now. */
  private running: AbortSignal | null = null;

  constructor(private readonly api: Api) {
    this.element.className = "meet generate";
  }

  async load(context: Context, signal: AbortSignal): Promise<void> {
    const { model, state, settle } = context;
    if (!nextToken(model) || state.a.kind === "vectors") {
      this.generation = null;
      return;
    }
    const generation = this.generationOf(context);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const isOver = () => generation.endsAt(generation.written.length);
    this.running = signal;
    try {
      // What comes next is asked for before it is written, and tells how the prompt is read.
      while (generation.written.length < Math.max(1, state.said) && !isOver()) {
        await generation.next(signal);
        if (signal.aborted) return;
        this.take(generation, state.said);
        this.context = context;
        this.draw();
        if (this.count < state.said && !isOver() && !still) await new Promise((resolve) => setTimeout(resolve, PAUSE));
        if (signal.aborted) return;
      }
    } finally {
      if (this.running === signal) this.running = null;
    }
    this.take(generation, state.said);
    if (state.said !== this.count) settle({ said: this.count });
  }

  private take(generation: Generation, said: number): void {
    this.generation = generation;
    this.count = Math.min(said, generation.written.length);
  }

  /** The generation of a state: one that is known, or a new one. */
  private generationOf({ model, state }: Context): Generation {
    const { a, draw, seed } = state;
    const asked = JSON.stringify([model.version, a, draw, draw && seed]);
    const found = this.kept.get(asked) ?? new Generation(this.api, model, a, { temperature: draw, seed });
    this.kept.delete(asked);
    this.kept.set(asked, found);
    for (const oldest of this.kept.keys()) {
      if (this.kept.size <= KEPT) break;
      this.kept.delete(oldest);
    }
    return found;
  }

  show(context: Context): void {
    this.context = context;
    this.draw();
  }

  private get written(): Written[] {
    return this.generation!.written.slice(0, this.count);
  }

  /** The token whose row is shown. */
  private get chosen(): number {
    return Math.min(this.context!.state.written ?? this.count, this.count - 1);
  }

  private get by(): ReadBy {
    return readBy(this.context!.state.read, this.generation!.model);
  }

  private draw(): void {
    const { generation } = this;
    if (!this.context) return;
    if (!generation) {
      const reason =
        this.context.state.a.kind === "vectors"
          ? "Vectors have no next token."
          : "The model names no predictor of the next token.";
      render(
        html`<div class="meet-card"><p class="lead">${reason} Choose a decoder, and a text that it goes on with.</p></div>`,
        this.element,
      );
      return;
    }
    const { state, change, edit } = this.context;
    const { chosen, written } = this;
    const step = written[chosen];
    const next = generation.written[this.count];
    render(
      html`<div class="meet-card">
          <h2>${step ? html`What was read before <span class="asking">${cut(step.label, 24)}</span> was written?` : "What comes next?"}</h2>
          <p class="quiet-text">A decoder writes one token after another. Before each it reads what stands there, of which the server keeps keys and values.
            Click a written token to see what it read, and a word of the prompt to hide it.</p>
          ${this.controls()}
          ${this.text.element}
          <p class="unseen" role="status" aria-live="polite">${this.running ? "" : joined(written.map(({ label }) => label))}</p>
          ${whatIf(this.context, generation.prompt)}
        </div>
        <div class="cards">${step ? this.reads(step) : nothing}${step ? candidates(`In place of “${token(step.label)}”`, step) : next ? candidates("Most probable next", next) : nothing}${step ? this.sentences(step) : nothing}</div>
        <p class="note">Attention weights are not explanations by themselves: they say what was summed, and how much of it, not why.
          So hide a word, and see whether another text is written.</p>`,
      this.element,
    );
    this.text.show({
      prompt: generation.prompt,
      written: written.map(({ label }, at) => ({ label, ends: generation.endsAt(at + 1) && at === this.count - 1 })),
      hidden: state.a.hidden,
      chosen: step ? { at: chosen, row: rowOf(step, this.by) } : null,
      hide: (key) => edit({ hidden: toggled(state.a.hidden, key).sort((a, b) => a - b) }),
      choose: (at) => change({ written: at }),
    });
  }

  private controls(): TemplateResult {
    const { state, change, edit } = this.context!;
    const { count, generation } = this;
    const { layers } = generation!.model.manifest;
    const done = generation!.endsAt(count);
    const running = this.running !== null && count < state.said;
    const to = (said: number) => change({ said, written: null });
    const choice = (draw: number, seed = state.seed) => change({ draw, seed, written: null });
    const { layer, head } = this.by;
    const value = (event: Event) => (event.target as HTMLSelectElement).value;
    const name = layer === null ? "" : layers[layer].name;
    return html`<div class="turn">
        <button type="button" class="primary" ?disabled=${done || running} @click=${() => to(count + 1)}>Next token</button>
        ${
          running
            ? html`<button type="button" class="go" @click=${() => to(count)}>Stop</button>`
            : html`<button type="button" class="go" ?disabled=${done} @click=${() => to(count + FURTHER)}>Write ${FURTHER}</button>`
        }
        <button type="button" ?disabled=${!count} @click=${() => to(0)}>Clear</button>
        <div class="segmented" role="group" aria-label="Choice of tokens">
          <button type="button" aria-pressed=${state.draw === 0} @click=${() => choice(0)}>most probable</button>
          <button type="button" aria-pressed=${state.draw > 0} @click=${() => choice(state.draw || 1)}>drawn</button></div>
        ${
          state.draw > 0
            ? html`<label class="field inline">at temperature <select @change=${(event: Event) => choice(Number(value(event)))}>${[...new Set([...DRAWS, state.draw])].sort((a, b) => a - b).map((each) => html`<option value=${each} ?selected=${each === state.draw}>${each}</option>`)}</select></label>
              <button type="button" @click=${() => choice(state.draw, state.seed + 1)}>Draw anew</button>`
            : nothing
        }
      </div>
      <div class="turn read-by">
        <label class="field inline">read by <select aria-label="Layer" @change=${(event: Event) => change({ read: value(event) && `${value(event)}.mean` })}>
          <option value="" ?selected=${layer === null}>all layers</option>${layers.map((each, at) => html`<option value=${each.name} ?selected=${at === layer}>layer ${each.name}</option>`)}</select></label>
        <label class="field inline"><select aria-label="Head" ?disabled=${layer === null} @change=${(event: Event) => change({ read: `${name}.${value(event)}` })}>
          <option value="mean" ?selected=${head === null}>mean over heads</option>${layer === null ? nothing : range(layers[layer].heads).map((each) => html`<option value=${each} ?selected=${each === head}>head ${each}</option>`)}</select></label>
        ${
          head === null
            ? nothing
            : html`<button type="button" class="pill" aria-pressed=${state.a.off.includes(state.read)} @click=${() => edit({ off: toggled(state.a.off, state.read) })}>${state.a.off.includes(state.read) ? "switch on" : "switch off"}</button>`
        }
      </div>`;
  }

  private reads(step: Written): TemplateResult {
    const { generation, by } = this;
    const row = rowOf(step, by);
    const names = this.names;
    return html`<article class="card"><header><h3>read most · ${nameOf(by, generation!.model)}</h3></header>
      ${strongest(row, NAMED, 0).map((key) => line(names[key], row[key]))}</article>`;
  }

  private sentences(step: Written): TemplateResult | typeof nothing {
    const parts = bySentence(this.generation!, step, this.by);
    if (!parts.length) return nothing;
    return html`<article class="card"><header><h3>by sentence</h3></header>${parts.map(([text, sum]) => line(text, sum))}</article>`;
  }

  /** The tokens that a row may read. */
  private get names(): string[] {
    return [...this.generation!.prompt, ...this.written.map(({ label }) => label)];
  }

  // --- files -----------------------------------------------------------------------------------------------------------

  shown(): Shown | null {
    const picture = this.picture();
    if (!picture || !this.generation) return null;
    const { generation, by } = this;
    const { weights } = this.layerOf(by);
    const drawn = { weights, head: 0, colour: null, queries: picture.queries, keys: picture.keys, most: 1 };
    return {
      style: "lines",
      panels: [{ title: nameOf(by, generation.model), drawn }],
      heading: `${cut(titleOf(generation.input), 60)} → ${joined(picture.queries)}`,
      about: `${aboutPicture(picture)}, what each token read before it was written`,
      place: { query: this.chosen, key: null },
    };
  }

  /** Rows are tokens that were written, columns all before the last of them; where rows are whole, of every head. */
  picture(): Picture | null {
    const { generation, written } = this;
    if (!generation || !written.length) return null;
    const { model, input } = generation;
    const whole = written.every(({ heads }) => heads.every((each) => each.complete));
    return {
      title: titleOf(input),
      model: model.name,
      version: model.version,
      queries: written.map(({ label }) => label),
      keys: this.names.slice(0, -1),
      toItself: false,
      layers: whole
        ? model.manifest.layers.map(({ name, heads }, layer) => ({
            name,
            weights: this.rows(range(heads).map((head) => ({ layer, head }))),
          }))
        : [this.layerOf(this.by)],
      focus: null,
      predictions: [],
    };
  }

  private layerOf(by: ReadBy) {
    return { name: nameOf(by, this.generation!.model), weights: this.rows([by]) };
  }

  /** [readings, tokens written, keys] */
  private rows(readings: ReadBy[]): Weights {
    const { written } = this;
    const keys = this.names.length - 1;
    const values = new Float32Array(readings.length * written.length * keys);
    readings.forEach((by, each) => {
      written.forEach((step, at) => {
        values.set(rowOf(step, by), (each * written.length + at) * keys);
      });
    });
    return Weights.whole([readings.length, written.length, keys], values);
  }
}

function candidates(title: string, { top, label }: Written): TemplateResult {
  return html`<article class="card answer"><header><h3>${title}</h3></header>${top.map((each) => line(each.label, each.probability, each.label === label))}</article>`;
}

function line(label: string, value: number, own = false): TemplateResult {
  return html`<p class="answer-line read-line"><b class=${own ? "chosen" : ""}>${cut(label, 28)}</b> <span>${share(value)}</span>
    <span class="meter" aria-hidden="true"><span .style=${`width: ${(100 * Math.min(1, value)).toFixed(1)}%`}></span></span></p>`;
}
