// The page: one state with history, the sentence above, one view below. What is asked is dimmed, never taken away.
import { html, nothing, render } from "lit-html";
import { Api, ApiError, type Layer, type Model } from "../api/api.ts";
import { sequence, titleOf } from "../api/ask.ts";
import { nextToken } from "../api/generation.ts";
import { Known } from "../api/known.ts";
import { onSystemChange } from "../drawing/palette.ts";
import { readPicture } from "../drawing/picture.ts";
import { hideTip } from "../drawing/tip.ts";
import { carried, type Example, example, someVectors, translated } from "../state/examples.ts";
import { fromHash, leftOut, toHash } from "../state/link.ts";
import { type Input, isSameSequence, type State, UNCHOSEN, VIEWS, type View as ViewName } from "../state/state.ts";
import { AtlasView } from "../views/atlas/atlas.ts";
import { CompareView } from "../views/compare/compare.ts";
import { GenerateView } from "../views/generate/generate.ts";
import { MeetView } from "../views/meet/meet.ts";
import { StepsView } from "../views/steps/steps.ts";
import { TranslateView } from "../views/translate/translate.ts";
import { nextWord } from "../views/translate/translation.ts";
import type { Context, View } from "../views/view.ts";
import { Drawer, readFile } from "./drawer.ts";
import { kindsOf, save } from "./files.ts";
import { top } from "./frame.ts";
import { closeMenus, modelMenu } from "./menus.ts";
import { OpenedView } from "./opened.ts";
import { type Problem, problemOf } from "./problem.ts";
import { nearWords, sentence } from "./sentence.ts";
import { Story } from "./story.ts";
import { Theme } from "./theme.ts";
import { TokenForm } from "./token.ts";
import { Vocabulary } from "./vocabulary.ts";
import { modelsOf, RETRIES } from "./waiting.ts";

const SETTLED = 350; // milliseconds after the last key, until what was typed is asked; twice as many after each time
const SLOW = 120; // milliseconds after which a question is seen to be asked

export class App {
  private readonly root = document.getElementById("page")!;
  private readonly token = new TokenForm(() => this.render());
  private readonly api = new Api(() => this.token.ask());
  private readonly known = new Known(this.api);
  private readonly vocabulary = new Vocabulary(this.api, () => this.render());
  private readonly theme = new Theme();
  private readonly views: Record<ViewName, View> = {
    meet: new MeetView(),
    steps: new StepsView(),
    atlas: new AtlasView(),
    translate: new TranslateView(this.api),
    generate: new GenerateView(this.api),
    compare: new CompareView(),
  };
  private readonly drawer = new Drawer({
    input: (changes) => this.given(changes),
    problem: (message) => {
      this.drawer.say(message);
      this.render();
    },
    open: (file) => this.open(file),
  });
  private readonly story = new Story(() => this.render());
  private models: Model[] = [];
  private state!: State;
  private opened: OpenedView | null = null;
  private problem: Problem | null = null;
  private asking: AbortController | null = null;
  /** What the shown view was loaded for; empty where nothing was. */
  private loaded = new Map<ViewName, string>();
  private timer = 0;
  private typed = 0;
  private attempts = 0;
  private busy = false;
  /** States by their place in the history, for what a link leaves out. */
  private readonly past = new Map<number, State>();
  private place = 0;

  async start(): Promise<void> {
    closeMenus();
    this.models = await modelsOf(this.api, this.root);
    addEventListener("popstate", (event) => this.back(event.state as { place: number } | null));
    addEventListener("keydown", (event) => this.pressed(event));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.open(event.dataTransfer?.files[0]);
    });
    addEventListener("online", () => this.retry());
    onSystemChange(() => this.redraw());
    this.place = (history.state as { place: number } | null)?.place ?? 0;
    this.state = fromHash(location.hash, this.models);
    this.remember(false);
    this.ask();
  }

  private modelOf({ model }: Input): Model {
    return this.models.find(({ name }) => name === model) ?? this.models[0];
  }

  /** The layer that is looked at: the one chosen where the model has it, else the last. */
  private get layer(): Layer {
    const { layers } = this.modelOf(this.state.a).manifest;
    return layers.find(({ name }) => name === this.state.layer) ?? layers.at(-1)!;
  }

  private get view(): View {
    return this.opened ?? this.views[this.state.view];
  }

  private get context(): Context {
    const { state, models, known } = this;
    return {
      state,
      models,
      known,
      model: this.modelOf(state.a),
      layer: this.layer,
      change: (changes, quietly = false) => this.change(changes, quietly),
      settle: (changes) => {
        this.state = { ...this.state, ...changes };
        this.remember(false);
      },
      edit: (changes) => this.input("a", changes, true),
      editOther: (changes) => this.input("b", changes, true),
      modelOf: (input) => this.modelOf(input),
    };
  }

  private change(changes: Partial<State>, quietly = false): void {
    this.state = { ...this.state, ...changes };
    this.remember(true);
    if (quietly) return;
    hideTip();
    this.ask();
  }

  private input(which: "a" | "b", changes: Partial<Input>, now: boolean): void {
    const before = this.state[which] ?? this.state.a;
    const input = { ...before, ...changes };
    const same = isSameSequence(input, before);
    // Positions are struck in one sentence, and mean nothing in another.
    if (!same && !changes.hidden) input.hidden = [];
    this.state = { ...this.state, [which]: input, ...(same || which === "b" ? {} : { lock: null, said: 0 }) };
    this.opened = null;
    clearTimeout(this.timer);
    if (now) {
      this.typed = 0;
      this.remember(true);
      this.ask();
      return;
    }
    this.remember(this.typed === 0);
    this.render();
    this.timer = window.setTimeout(() => this.ask(), SETTLED * 2 ** Math.min(this.typed, 4));
    this.typed++;
  }

  /** Takes what the drawer gives; another kind of input begins with what can be sent. */
  private async given(changes: Partial<Input>): Promise<void> {
    const { a } = this.state;
    const model = this.modelOf(a);
    if (changes.kind === "vectors" && !a.query && !changes.query) changes = { ...changes, ...someVectors(model) };
    if (changes.kind === "ids" && !a.ids.length) {
      const tokens = await this.api.tokenize(model, { text: a.text }).catch(() => ({ token_ids: [0] }));
      changes = { ...changes, ids: tokens.token_ids };
    }
    this.input("a", changes, true);
  }

  private pick(which: "a" | "b", model: Model, chosen: Example | null, also: Partial<State> = {}): void {
    const before = this.state[which] ?? this.state.a;
    const input = chosen
      ? { ...example(model), text: chosen.text, memoryText: chosen.memoryText }
      : carried(before, this.modelOf(before), model);
    this.opened = null;
    this.typed = 0;
    if (which === "b") this.change({ b: input, sides: null });
    else this.change({ a: input, ...(model.name === before.model ? { said: 0, lock: null } : UNCHOSEN), ...also });
  }

  /** Opens a view; to translate, with a model that does. */
  private go(view: ViewName): void {
    this.opened = null;
    const translator = this.models.find((each) => nextWord(each));
    if (view === "translate" && translator && !nextWord(this.modelOf(this.state.a)))
      this.change({ view, a: translated(translator), ...UNCHOSEN });
    else if (view === "generate" && !nextToken(this.modelOf(this.state.a)))
      this.pick("a", this.models.find((each) => nextToken(each))!, null, { view });
    else this.change({ view });
  }

  /** The views that some model can be seen in. */
  private get seen(): ViewName[] {
    return VIEWS.filter((each) => each !== "generate" || this.models.some(nextToken));
  }

  // --- asking ----------------------------------------------------------------------------------------------------------

  /** What the view is loaded for. */
  private get question(): string {
    const { a, b, view } = this.state;
    return JSON.stringify([a, view === "compare" ? b : null]);
  }

  /** Asks for what the state shows; what was asked before and has no answer yet is given up. */
  private async ask(): Promise<void> {
    clearTimeout(this.timer);
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const slow = setTimeout(() => {
      this.busy = true;
      this.render();
    }, SLOW);
    const { view } = this;
    try {
      await view.load(this.context, signal);
      if (signal.aborted) return;
      this.problem = null;
      this.attempts = 0;
      this.loaded.set(this.state.view, this.question);
    } catch (error) {
      if (signal.aborted) return;
      this.fail(error);
    } finally {
      clearTimeout(slow);
    }
    this.busy = false;
    this.redraw();
  }

  private fail(error: unknown): void {
    this.problem = problemOf(error);
    // A version that is gone was replaced: its successor is asked.
    const gone = error instanceof ApiError && error.status === 404 && this.attempts === 0;
    if (!this.problem.passes && !gone) return;
    const wait = gone ? 0 : 1000 * RETRIES[Math.min(this.attempts, RETRIES.length - 1)];
    this.attempts++;
    this.timer = window.setTimeout(() => this.retry(), wait);
  }

  /** Asks again, of the models that are served now. */
  private async retry(): Promise<void> {
    if (!this.problem) return;
    try {
      const models = await this.api.models();
      if (models.length) this.models = models;
    } catch {
      // The question itself tells what is wrong.
    }
    this.ask();
  }

  private redraw(): void {
    this.render();
    if (this.opened || this.loaded.has(this.state.view)) this.view.show(this.context);
  }

  // --- history ---------------------------------------------------------------------------------------------------------

  private remember(step: boolean): void {
    const address = `#${toHash(this.state)}`;
    if (step && address !== location.hash) history.pushState({ place: ++this.place }, "", address);
    else history.replaceState({ place: this.place }, "", address);
    this.past.set(this.place, this.state);
  }

  private back(entry: { place: number } | null): void {
    this.place = entry?.place ?? this.place;
    this.state = (entry && this.past.get(entry.place)) ?? fromHash(location.hash, this.models);
    if (!entry) this.remember(false);
    this.opened = null;
    this.typed = 0;
    this.ask();
  }

  private pressed(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    const typing = target.closest("input, textarea, select, summary, dialog, [role=application]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!this.opened && this.state.view === "steps") this.views.steps.pressed?.(event, this.context);
  }

  // --- files -----------------------------------------------------------------------------------------------------------

  /** Opens a file that was chosen, or dropped on the page: a picture, or vectors as the query. */
  private async open(file: File | undefined): Promise<void> {
    if (!file) return;
    try {
      const content = await readFile(file);
      if (!("content" in content)) {
        this.input("a", { kind: "vectors", query: content }, true);
        return;
      }
      this.asking?.abort();
      this.busy = false;
      this.opened = new OpenedView(readPicture(content.content, file.name), file.name, () => this.render());
      this.problem = null;
    } catch (error) {
      this.problem = { message: `${file.name}: ${problemOf(error).message}`, passes: false, unknown: null };
    }
    this.redraw();
  }

  private async save(kind: string): Promise<void> {
    try {
      await save(kind, this.view, this.opened ? null : this.context);
      this.problem = null;
    } catch (error) {
      this.problem = problemOf(error);
    }
    this.render();
  }

  // --- the frame -------------------------------------------------------------------------------------------------------

  private render(): void {
    if (!this.state) {
      render(html`<main class="empty"><h1>Attention</h1>${this.token.template()}</main>`, this.root);
      return;
    }
    const { state } = this;
    const model = this.modelOf(state.a);
    const translates = state.view === "translate" && nextWord(model) !== null;
    this.drawer.show(model, state.a, sequence(state.a, model));
    render(
      html`
        ${top({
          views: this.seen,
          view: this.opened ? null : state.view,
          models: modelMenu("Model", this.models, model, (picked, chosen) => this.pick("a", picked, chosen)),
          kinds: kindsOf(this.view, state.view === "compare" && !this.opened),
          go: (view) => this.go(view),
          input: () => this.drawer.open(),
          save: (kind) => this.save(kind),
          story: this.story.length,
          tell: (add) => this.story.open(add ? this.view.shown() : null),
          theme: () => {
            this.theme.turn();
            this.redraw();
          },
        })}
        <main id="main" tabindex="-1">
          ${this.token.template()}
          ${
            this.opened
              ? html`<p class="notice">${this.opened.name}: ${this.opened.picture().title} <button type="button" class="quiet" @click=${() => {
                  this.opened = null;
                  this.ask();
                }}>back to the model</button></p>`
              : this.sentences(model, translates)
          }
          ${this.problems()}
          <div class=${this.stale ? "view stale" : "view"} aria-busy=${this.busy ? "true" : "false"}>${this.view.element}</div>
        </main>
        ${this.drawer.element}${this.story.element}
      `,
      this.root,
    );
  }

  /** Whether what is drawn belongs to another input than the one in the field. */
  private get stale(): boolean {
    if (this.opened) return false;
    const loaded = this.loaded.get(this.state.view);
    return this.problem !== null || (loaded !== undefined && loaded !== this.question);
  }

  private sentences(model: Model, translates: boolean) {
    const { a, b, view } = this.state;
    const unknown = this.problem?.unknown ?? null;
    const events = (which: "a" | "b") => ({
      input: (changes: Partial<Input>, now: boolean) => this.input(which, changes, now),
      open: () => this.drawer.open(),
    });
    const first = sentence("a", model, a, translates, unknown, events("a"));
    const missing = leftOut(this.state);
    return html`${
      view === "compare" && b
        ? html`<div class="two-inputs"><div><b class="side">A</b>${first}</div>
          <div><b class="side">B</b>${modelMenu("Model of B", this.models, this.modelOf(b), (picked, chosen) => this.pick("b", picked, chosen))}
            ${sentence("b", this.modelOf(b), b, false, unknown, events("b"))}</div></div>`
        : first
    }
    ${missing.length ? html`<p class="notice">The link to this page leaves out ${missing.join(", ")}: too many for an address. Whoever opens it needs the file.</p>` : nothing}`;
  }

  private problems() {
    if (!this.problem) return nothing;
    const { message, passes, unknown } = this.problem;
    const drawn = this.opened ? null : this.view.picture();
    return html`<div class="problem-place"><div class="problem" role="alert"><p>${message}</p>
      ${passes ? html`<p>The page asks again by itself. <button type="button" @click=${() => this.retry()}>Ask now</button></p>` : nothing}
      ${drawn && drawn.title !== titleOf(this.state.a) ? html`<p class="quiet-text">Below, dimmed: the last answer, of “${drawn.title}”.</p>` : nothing}
      ${unknown ? nearWords(unknown, this.state, (which, changes) => this.input(which, changes, true)) : nothing}
      ${unknown ? this.vocabulary.template(this.modelOf(this.state.a)) : nothing}</div></div>`;
  }
}
