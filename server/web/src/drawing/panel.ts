// One head on the screen: a canvas that stays, and one over it for what is pointed at.
import { type Drawing, type Drawn, drawing, type Place, type Style, spoken } from "./drawing.ts";
import { palette } from "./palette.ts";
import { CanvasPen } from "./pen.ts";
import { hideTip, showTip } from "./tip.ts";

export interface PanelEvents {
  hover(place: Place | null): void;
  lock(place: Place): void;
}

export class Panel {
  readonly element = document.createElement("div");
  private readonly base = document.createElement("canvas");
  private readonly over = document.createElement("canvas");
  private drawing: Drawing | null = null;
  private drawn: Drawn | null = null;
  private place: Place | null = null;

  constructor(private readonly events: PanelEvents) {
    this.element.className = "stage";
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "application");
    this.element.append(this.base, this.over);
    this.element.addEventListener("pointermove", (event) => this.pointed(event));
    this.element.addEventListener("pointerleave", () => {
      hideTip();
      events.hover(null);
    });
    this.element.addEventListener("click", (event) => {
      const place = this.under(event);
      if (place) events.lock(place);
    });
    this.element.addEventListener("keydown", (event) => this.pressed(event));
  }

  show(drawn: Drawn, style: Style, width: number, name: string): void {
    this.drawn = drawn;
    this.drawing = drawing(style, drawn, width);
    const { queries, keys } = drawn.weights;
    this.element.setAttribute(
      "aria-label",
      `${name}: weights of ${queries} queries on ${keys} keys. Arrow keys move, Enter locks, Escape unlocks.`,
    );
    for (const canvas of [this.base, this.over]) resize(canvas, this.drawing);
    const pen = this.pen(this.base);
    if (pen) this.drawing.base(pen, palette());
    this.highlight(this.place);
  }

  highlight(place: Place | null): void {
    this.place = place;
    if (!this.drawing) return;
    const pen = this.pen(this.over);
    this.base.classList.toggle("hushed", place !== null && this.drawing.alone);
    if (pen && place) this.drawing.highlight(pen, palette(), place);
  }

  private pointed(event: PointerEvent): void {
    const place = this.under(event);
    this.events.hover(place);
    if (place && this.drawn) showTip(spoken(this.drawn, place), event.clientX, event.clientY);
    else hideTip();
  }

  private under(event: MouseEvent): Place | null {
    const box = this.base.getBoundingClientRect();
    return this.drawing?.at(event.clientX - box.left, event.clientY - box.top) ?? null;
  }

  private pressed(event: KeyboardEvent): void {
    if (!this.drawn) return;
    const { queries, keys } = this.drawn.weights;
    const { query, key } = this.place ?? { query: 0, key: null };
    const moves: Record<string, Place> = {
      ArrowUp: { query: Math.max(0, query - 1), key },
      ArrowDown: { query: Math.min(queries - 1, query + 1), key },
      ArrowLeft: { query, key: Math.max(0, (key ?? 1) - 1) },
      ArrowRight: { query, key: Math.min(keys - 1, (key ?? -1) + 1) },
    };
    if (event.key in moves) this.events.hover(this.place ? moves[event.key] : { query: 0, key: 0 });
    else if (event.key === "Enter" || event.key === " ") this.events.lock({ query, key });
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  private pen(canvas: HTMLCanvasElement): CanvasPen | null {
    const context = canvas.getContext("2d");
    if (!context) return null;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.scale(devicePixelRatio, devicePixelRatio);
    return new CanvasPen(context);
  }
}

function resize(canvas: HTMLCanvasElement, { width, height }: Drawing): void {
  canvas.width = Math.ceil(width * devicePixelRatio);
  canvas.height = Math.ceil(height * devicePixelRatio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
}
