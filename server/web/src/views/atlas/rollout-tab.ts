// The way through the layers: what a word has read after each of them, by attention rollout.
import { html, nothing, render } from "lit-html";
import type { Read } from "../../api/ask.ts";
import type { Panel as Drawable } from "../../drawing/drawing.ts";
import { moveFocus } from "../../drawing/focus.ts";
import { cut, token } from "../../drawing/format.ts";
import { Panel } from "../../drawing/panel.ts";
import type { Picture } from "../../drawing/picture.ts";

export class RolloutTab {
  readonly element = document.createElement("div");
  private drawable: Drawable | null = null;
  private readonly panel = new Panel({ hover: (place) => this.panel.highlight(place), lock: () => undefined });

  constructor() {
    this.element.className = "rollout";
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(picture: Picture, { weights, after, query }: Read, ask: (query: number) => void): void {
    const names = after.map(({ name }) => `after ${name}`);
    const word = token(picture.queries[query]);
    this.drawable = {
      title: `rollout from ${word}`,
      drawn: { weights, head: 0, colour: null, queries: names, keys: picture.keys, most: weights.most },
    };
    render(
      html`<h2>What has <span class="asking">${word}</span> read, layer by layer?</h2>
        <p class="quiet-text">Attention rollout: the weights' mean over heads, half of it and half of the word itself, multiplied layer by layer
          (Abnar and Zuidema, 2020). A row is what the word holds after a layer${after.length > 1 ? nothing : ", here after the last"}; it adds up to 1.</p>
        <div class="strip" role="group" aria-label="The word">${picture.queries.map(
          (name, at) =>
            html`<button type="button" class="chip" aria-pressed=${at === query} tabindex=${at === query ? 0 : -1} @keydown=${moveFocus} @click=${() => ask(at)}>${cut(name, 24)}</button>`,
        )}</div>
        ${this.panel.element}
        <p class="note">Attention weights are not explanations by themselves, and neither is their product.</p>`,
      this.element,
    );
    this.draw();
  }

  drawn(): Drawable {
    return this.drawable!;
  }

  private draw(): void {
    if (!this.drawable || !this.element.isConnected) return;
    const width = Math.min(this.element.clientWidth, 960);
    this.panel.show(this.drawable.drawn, "matrix", width, "Rollout, a row a layer");
  }
}
