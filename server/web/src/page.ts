// The page: what was asked on the left, what attention does with it on the right.
import { html, nothing, render } from "lit-html";
import { Api, ApiError, type Model } from "./api.ts";
import { askMean, askPicture, askRow, askStages, type Input } from "./ask.ts";
import { CompareView } from "./compare.ts";
import { bertViz, download, json, png, type Shown, standalone, svg } from "./export.ts";
import { form, readFile } from "./form.ts";
import { exportMenu, layerChoice, top } from "./frame.ts";
import { HeadsView, type Source } from "./heads.ts";
import { onSystemChange } from "./palette.ts";
import { type Picture, readPicture } from "./picture.ts";
import { STAGES } from "./stages.ts";
import { fromHash, leftOut, type State, toHash, VIEWS, type View } from "./state.ts";
import { StepsView } from "./steps.ts";
import { hideTip } from "./tip.ts";
import { TokenForm } from "./token.ts";
import { nextWord, TranslateView } from "./translate.ts";

const NAMES: Record<View, string> = {
  steps: "Step by step",
  heads: "Heads",
  translate: "Translate",
  compare: "Compare",
};
const PICTURES = ["SVG", "PNG"];
const DATA = ["JSON", "HTML", "BertViz"]; // of one input
const SETTLED = 220; // milliseconds after the last key, until what was typed is asked

class Page {
  private readonly root = document.getElementById("page")!;
  private readonly token = new TokenForm(() => this.render());
  private readonly api = new Api(() => this.token.ask());
  private readonly steps = new StepsView({
    step: (step) => this.step(step),
    head: (head) => this.change({ head }),
    query: (query) => this.change({ query }),
  });
  private readonly heads = new HeadsView(({ style, heads, mean, lock }) => {
    Object.assign(this.state, { style, heads, mean, lock, ...(lock ? { query: lock.query } : {}) });
    this.remember();
  });
  private readonly compare = new CompareView();
  private readonly translate = new TranslateView(this.api, () => this.render());
  private models: Model[] = [];
  private state!: State;
  private picture: Picture | null = null;
  private other: Picture | null = null;
  private opened: { name: string; picture: Picture; layer: number } | null = null;
  private problem = "";
  private asking: AbortController | null = null;
  private timer = 0;
  private said = "";

  async start(): Promise<void> {
    try {
      this.models = await this.api.models();
    } catch (error) {
      this.problem = message(error);
    }
    if (!this.models.length) {
      this.problem ||= "No model is served.";
      render(
        html`<main class="empty"><h1>Attention</h1><p class="problem" role="alert">${this.problem}</p></main>`,
        this.root,
      );
      return;
    }
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) !== this.said) this.read();
    });
    addEventListener("keydown", (event) => this.pressed(event));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.open(event.dataTransfer?.files[0]);
    });
    onSystemChange(() => this.redraw());
    this.read();
  }

  private read(): void {
    this.state = fromHash(location.hash, this.models);
    const { style, heads, mean, lock } = this.state;
    Object.assign(this.heads.state, { style, heads, mean, lock });
    this.ask();
  }

  private get model(): Model {
    return this.models.find(({ name }) => name === this.state.a.model)!;
  }

  private modelOf(input: Input): Model {
    return this.models.find(({ name }) => name === input.model)!;
  }

  /** The layer of a model that is looked at: the one chosen where it has it, else the last. */
  private layerOf(model: Model) {
    const { layers } = model.manifest;
    return layers.find(({ name }) => name === this.state.layer) ?? layers.at(-1)!;
  }

  private get views(): View[] {
    return VIEWS.filter((view) => view !== "translate" || nextWord(this.model));
  }

  private change(changes: Partial<State>): void {
    Object.assign(this.state, changes);
    this.ask();
  }

  private step(step: number): void {
    if (step < 0 || step >= STAGES.length) return;
    this.state.step = step;
    hideTip();
    this.remember();
    this.redraw();
    document.getElementById("stage-title")?.focus({ preventScroll: true });
  }

  private input(which: "a" | "b", input: Input): void {
    const { a } = this.state;
    if (which === "a" && input.model !== a.model) {
      Object.assign(this.state, { query: null, head: 0, layer: "", heads: [], lock: null });
      Object.assign(this.heads.state, { heads: [], lock: null });
    }
    this.state[which] = input;
    this.opened = null;
    this.render();
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.ask(), SETTLED);
  }

  /** Asks for what the state shows; what was asked before and has no answer yet is given up. */
  private async ask(): Promise<void> {
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    if (!this.views.includes(this.state.view)) this.state.view = "steps";
    if (this.state.view === "compare") this.state.b ??= { ...this.state.a };
    this.remember();
    this.root.setAttribute("aria-busy", "true");
    try {
      const inputs = this.state.view === "compare" ? [this.state.a, this.state.b!] : [this.state.a];
      const pictures = await Promise.all(
        inputs.map((input) => {
          const model = this.modelOf(input);
          return askPicture(this.api, model, input, [this.layerOf(model).name], signal);
        }),
      );
      [this.picture, this.other] = [pictures[0], pictures[1] ?? null];
      this.problem = "";
      if (this.state.view === "steps") await this.askStages(signal);
    } catch (error) {
      if (signal.aborted) return;
      this.problem = message(error);
      this.picture = null;
    }
    this.root.removeAttribute("aria-busy");
    this.redraw();
  }

  private scene: Parameters<StepsView["show"]>[0] | null = null;

  private async askStages(signal: AbortSignal): Promise<void> {
    const picture = this.picture!;
    const { state, model } = this;
    const layer = this.layerOf(model);
    const query = Math.min(state.query ?? picture.focus ?? 0, picture.queries.length - 1);
    const head = Math.min(state.head, layer.heads - 1);
    const stages = await askStages(this.api, model, state.a, layer.name, query, head, signal);
    this.scene = { model, layer, input: state.a, picture, stages, head };
  }

  private redraw(): void {
    this.render();
    const { view } = this.state;
    if (this.opened) this.heads.show(this.opened.picture, this.opened.layer, null);
    else if (!this.picture) return;
    else if (view === "heads") this.heads.show(this.picture, 0, this.source());
    else if (view === "steps" && this.scene) this.steps.show(this.scene, Math.min(this.state.step, STAGES.length - 1));
    else if (view === "compare" && this.other) this.compare.show([this.picture, this.other], [0, 0], this.state.style);
    else if (view === "translate") this.translate.show(this.model, this.state.a.memoryText);
  }

  private source(): Source {
    const { model } = this;
    const { a } = this.state;
    const layer = this.layerOf(model).name;
    const keys = this.picture!.keys.length;
    return {
      mean: (heads) => askMean(this.api, model, a, layer, heads, keys),
      row: (query) => askRow(this.api, model, a, layer, query),
    };
  }

  private remember(): void {
    this.said = toHash(this.state);
    history.replaceState(null, "", `#${this.said}`);
  }

  private pressed(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (target.closest("input, textarea, select, summary, dialog") || event.ctrlKey || event.metaKey || event.altKey)
      return;
    if (this.state.view !== "steps" || this.opened) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) this.step(this.state.step + step);
    else if (/^[1-9]$/.test(event.key)) this.step(Number(event.key) - 1);
  }

  /** Opens a file that was dropped on the page: a picture, or vectors as the query. */
  private async open(file: File | undefined): Promise<void> {
    if (!file) return;
    try {
      const content = await readFile(file);
      if (!("content" in content)) {
        this.input("a", { ...this.state.a, kind: "vectors", query: content });
        return;
      }
      const picture = readPicture(content.content, file.name);
      this.opened = { name: file.name, picture, layer: picture.layers.length - 1 };
      this.heads.state.heads = [];
      this.heads.state.lock = picture.focus === null ? null : { query: picture.focus, key: null };
      this.state.view = "heads";
      this.problem = "";
    } catch (error) {
      this.problem = `${file.name}: ${message(error)}`;
    }
    this.redraw();
  }

  private close(): void {
    this.opened = null;
    this.heads.state.lock = null;
    this.ask();
  }

  // --- files -----------------------------------------------------------------------------------------------------------

  private shown(): Shown | null {
    const view = this.opened ? "heads" : this.state.view;
    const picture = this.exported();
    if (!picture) return null;
    if (view === "compare" && this.other) {
      const panels = this.compare.panelsShown();
      return { style: "matrix", panels, heading: `${picture.title} / ${this.other.title}`, place: this.compare.place };
    }
    const heads = view === "translate" ? this.translate.heads : this.heads;
    if (view === "steps") this.heads.show(picture, 0, null);
    return { style: heads.state.style, panels: heads.panelsShown(), heading: picture.title, place: heads.place };
  }

  private exported(): Picture | null {
    return this.opened?.picture ?? (this.state.view === "translate" ? this.translate.picture : this.picture);
  }

  /** A picture with every layer, for files that hold more than one. */
  private async whole(): Promise<Picture> {
    const picture = this.exported()!;
    const { layers } = this.model.manifest;
    if (this.opened || this.state.view === "translate" || layers.length === 1) return picture;
    return askPicture(
      this.api,
      this.model,
      this.state.a,
      layers.map(({ name }) => name),
    );
  }

  private async save(kind: string): Promise<void> {
    const shown = this.shown();
    if (!shown) return;
    const name = this.exported()!.model || "attention";
    try {
      if (kind === "SVG") download(svg(shown), `${name}.svg`);
      else if (kind === "PNG") download(await png(shown), `${name}.png`);
      else if (kind === "JSON") download(json(await this.whole()), `${name}.json`);
      else if (kind === "BertViz") download(bertViz(await this.whole()), `${name}.bertviz.json`);
      else download(standalone(await this.viewer(), await this.whole()), `${name}.html`);
      this.problem = "";
    } catch (error) {
      this.problem = message(error);
    }
    this.render();
  }

  private async viewer(): Promise<string> {
    const path = document.querySelector<HTMLMetaElement>('meta[name="viewer"]')!.content;
    const response = await fetch(path);
    if (!response.ok) throw new Error(`the viewer cannot be read: ${response.status}`);
    return response.text();
  }

  // --- the frame -------------------------------------------------------------------------------------------------------

  private theme(): void {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    this.redraw();
  }

  private render(): void {
    if (!this.state) {
      render(html`<main class="empty"><h1>Attention</h1>${this.token.template()}</main>`, this.root);
      return;
    }
    const { state, models } = this;
    const events = (which: "a" | "b") => ({
      input: (input: Input) => this.input(which, input),
      problem: (text: string) => {
        this.problem = text;
        this.render();
      },
    });
    const layers = this.opened ? this.opened.picture.layers : this.model.manifest.layers;
    const layer = this.opened ? this.opened.layer : layers.indexOf(this.layerOf(this.model) as never);
    const missing = leftOut(state);
    render(
      html`
        ${top(() => this.theme())}
        <div class="frame">
          <aside class="inputs" aria-label="Input">
            ${form("a", models, state.a, state.view === "translate", events("a"))}
            ${state.view === "compare" && state.b ? html`<h2 class="with">compared with</h2>${form("b", models, state.b, false, events("b"))}` : nothing}
            ${missing.length ? html`<p class="notice">The link to this page leaves out ${missing.join(", ")}: too many for an address. Whoever opens it needs the file.</p>` : nothing}
            <label class="choose open">open a picture: JSON of this page, of :attend or of BertViz
              <input type="file" accept=".json" aria-label="Open a picture" @change=${(event: Event) => {
                const input = event.target as HTMLInputElement;
                this.open(input.files?.[0]);
                input.value = "";
              }}></label>
          </aside>
          <main id="main" tabindex="-1">
            ${this.token.template()}
            <div class="bar-of-views">
              <div class="tabs" role="group" aria-label="Views">${this.views.map(
                (view) =>
                  html`<button type="button" aria-pressed=${!this.opened && state.view === view} @click=${() => {
                    this.opened = null;
                    this.change({ view });
                  }}>${NAMES[view]}</button>`,
              )}</div>
              ${layerChoice(layers, layer, (at) => {
                if (this.opened) {
                  this.opened.layer = at;
                  this.redraw();
                } else this.change({ layer: layers[at].name });
              })}
              ${exportMenu(this.state.view === "compare" ? PICTURES : [...PICTURES, ...DATA], (kind) => this.save(kind))}
            </div>
            ${this.opened ? html`<p class="notice">${this.opened.name}: ${this.opened.picture.title} <button type="button" class="quiet" @click=${() => this.close()}>back to the model</button></p>` : nothing}
            ${this.problem ? html`<p class="problem" role="alert">${this.problem}</p>` : nothing}
            ${this.view()}
          </main>
        </div>
      `,
      this.root,
    );
  }

  private view() {
    if (this.opened) return this.heads.element;
    const { view } = this.state;
    if (view === "translate") return this.translate.element;
    if (!this.picture) return nothing;
    return { steps: this.steps.element, heads: this.heads.element, compare: this.compare.element }[view];
  }
}

function message(error: unknown): string {
  if (error instanceof ApiError && error.field)
    return `${error.field}: ${error.message.replace(`${error.field}: `, "")}`;
  return error instanceof Error ? error.message : String(error);
}

new Page().start();
