// One head, large: arcs or a matrix, what its chosen word looks at, its statistics, and a switch.
import { html, nothing, render } from "lit-html";
import type { Style } from "../../drawing/drawing.ts";
import { cut, share, token } from "../../drawing/format.ts";
import { Panel } from "../../drawing/panel.ts";
import type { Picture } from "../../drawing/picture.ts";
import { entropy } from "../../drawing/weights.ts";
import type { Statistics } from "./badges.ts";

export interface Large {
  picture: Picture;
  layer: number;
  head: number;
  query: number;
  /** The whole row of the query, where the picture has its largest weights alone. */
  row: Float32Array | null;
  /** Null where they are not counted yet. */
  statistics: Statistics | null;
  style: Style;
  off: boolean;
  turn(): void;
  ask(query: number): void;
}

const MOST_NAMED = 3;

export class LargeHead {
  readonly element = document.createElement("div");
  private large: Large | null = null;
  private hovered: number | null = null;
  private readonly panel = new Panel({
    hover: (place) => {
      this.hovered = place?.query ?? null;
      this.look();
      this.panel.highlight({ query: this.query, key: place?.key ?? null });
    },
    lock: ({ query }) => this.large?.ask(query),
  });

  constructor() {
    this.element.className = "large-head";
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(large: Large): void {
    this.large = large;
    this.hovered = null;
    const { picture, layer, head, statistics, off } = large;
    const { name } = picture.layers[layer];
    render(
      html`<header><h2>${picture.layers.length > 1 ? `layer ${name} · ` : ""}head ${head}</h2>
          <button type="button" class="pill" aria-pressed=${off} @click=${() => large.turn()}>${off ? "switch on" : "switch off"}</button></header>
        <p class="looks" role="status"></p>
        ${this.panel.element}
        <p class="statistics quiet-text">${statistics ? said(statistics, picture.toItself) : nothing}</p>`,
      this.element,
    );
    this.draw();
    this.look();
  }

  private get query(): number {
    return this.hovered ?? this.large!.query;
  }

  private draw(): void {
    if (!this.large || !this.element.isConnected) return;
    const { picture, layer, head, style } = this.large;
    const { name, weights } = picture.layers[layer];
    const { queries, keys } = picture;
    const most = weights.complete ? 1 : weights.most;
    const width = Math.max(200, this.element.clientWidth);
    this.panel.show({ weights, head, colour: null, queries, keys, most }, style, width, `Layer ${name}, head ${head}`);
    this.panel.highlight({ query: this.query, key: null });
  }

  private look(): void {
    const line = this.element.querySelector<HTMLElement>(".looks");
    if (!line || !this.large) return;
    const { picture, layer, head } = this.large;
    const { weights } = picture.layers[layer];
    const whole = this.hovered === null ? this.large.row : null;
    const row = whole ?? weights.row(head, this.query);
    const keys = Array.from(row.keys())
      .sort((a, b) => row[b] - row[a])
      .slice(0, MOST_NAMED);
    const named = keys.map((key) => `${cut(picture.keys[key], 14)} ${share(row[key])}`).join(" · ");
    render(
      html`from <b>${token(picture.queries[this.query])}</b>: ${named}${whole || weights.complete ? ` · entropy ${entropy(row).toFixed(2)} bits` : ""}`,
      line,
    );
  }
}

function said({ previous, self, first, reach }: Statistics, toItself: boolean): string {
  if (!toItself) return `first ${share(first)}`;
  return `previous ${share(previous)} · self ${share(self)} · first ${share(first)} · mean reach ${reach.toFixed(1)} tokens`;
}
