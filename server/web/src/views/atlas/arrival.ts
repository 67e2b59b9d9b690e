// The layers of one input as they arrive, where all at once would take long, and the statistics of their heads behind them.
import { html, nothing, type TemplateResult } from "lit-html";
import { type Answer, askPortions, askStatistics } from "../../api/answer.ts";
import type { Layer, Model } from "../../api/api.ts";
import { problemOf } from "../../app/problem.ts";
import type { Input } from "../../state/state.ts";
import type { Context } from "../view.ts";

export interface Asked {
  model: Model;
  input: Input;
  /** All that share queries and keys. */
  layers: Layer[];
  /** The one layer that is asked for; null for all, with statistics. */
  only: Layer | null;
}

export class Arrival {
  answer: Answer | null = null;
  /** Of a long sequence, the server's statistics of each head, [layers][H][8]; else the weights are whole and tell them. */
  statistics: Float32Array[][] | null = null;
  private readonly given = new AbortController();
  private stopped = false;
  private problem = "";
  /** Resolves with the first portion, and rejects where this fails. */
  readonly begun: Promise<void>;

  /** @param changed is called when more has arrived, or will not */
  constructor(
    private readonly known: Context["known"],
    private readonly asked: Asked,
    private readonly changed: () => void,
  ) {
    this.begun = new Promise((begun, fail) => this.run(begun, fail));
  }

  /** What is not there yet is asked for no more. */
  stop(): void {
    this.stopped = true;
    this.given.abort();
  }

  /** Whether something is missing that was asked for. */
  get waits(): boolean {
    return !this.stopped && !this.problem && !this.complete;
  }

  private get complete(): boolean {
    const { layers } = this.answer?.picture ?? { layers: [] };
    return this.count > 0 && (this.asked.only !== null || (this.count === layers.length && this.counted));
  }

  /** How many layers are there. */
  private get count(): number {
    return this.answer?.picture.layers.filter(({ weights }) => !weights.pending).length ?? 0;
  }

  /** Whether what heads do is known. */
  private get counted(): boolean {
    return this.statistics !== null || this.answer!.picture.layers.every(({ weights }) => weights.complete);
  }

  private async run(begun: () => void, fail: (error: unknown) => void): Promise<void> {
    const { known, given } = this;
    const { model, input, layers, only } = this.asked;
    try {
      for await (const answer of askPortions(known, model, input, layers, given.signal, only ?? undefined)) {
        if (this.stopped) return;
        const more = this.answer !== null;
        this.answer = answer;
        if (more) this.changed();
        else begun();
        if (only) return;
      }
      if (this.counted) return;
      const keys = this.answer!.picture.keys.length;
      this.statistics = await askStatistics(known, model, input, layers, keys, given.signal);
    } catch (error) {
      if (!this.answer) fail(error);
      this.problem = this.stopped ? "" : problemOf(error).message;
    }
    if (this.answer) this.changed();
  }

  /** How much is there, and a button that gives up the rest. @param again asks for the rest */
  progress(again: () => void): TemplateResult | typeof nothing {
    if (this.complete) return nothing;
    const { layers } = this.answer!.picture;
    const all = this.count === layers.length;
    const said = all ? "what heads do is counted" : `${this.count} of ${layers.length} layers are here`;
    const button = (label: string, act: () => void) =>
      html`<button type="button" class="quiet" @click=${act}>${label}</button>`;
    return html`<span class="arriving"><progress max=${layers.length + 1} value=${this.count} aria-label="Layers that are here"></progress>
      ${
        this.waits
          ? html`${said} ${button("Stop", () => {
              this.stop();
              this.changed();
            })}`
          : html`${this.problem || "Stopped"}: ${all ? "heads have no badges" : said} ${button("Go on", again)}`
      }</span>`;
  }
}
