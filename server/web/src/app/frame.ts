// The head of the page: views, the model, input, files.
import { html, type TemplateResult } from "lit-html";
import type { View } from "../state/state.ts";
import { menu } from "./menus.ts";

const NAMES: Record<View, string> = {
  meet: "Meet",
  steps: "Steps",
  atlas: "Atlas",
  translate: "Translate",
  generate: "Generate",
  compare: "Compare",
};

export interface Top {
  views: View[];
  view: View | null;
  models: TemplateResult;
  kinds: string[];
  go(view: View): void;
  input(): void;
  save(kind: string): void;
  /** How many views the story has. */
  story: number;
  tell(add: boolean): void;
  theme(): void;
}

export function top({ views, view, models, kinds, go, input, save, story, tell, theme }: Top): TemplateResult {
  const copy: [string, () => void][] = navigator.clipboard
    ? [["Copy link", () => navigator.clipboard.writeText(location.href)]]
    : [];
  const items: [string, () => void][] = [
    ...kinds.map((kind): [string, () => void] => [kind, () => save(kind)]),
    ...copy,
    ["Add to story", () => tell(true)],
    ...(story ? [[`Story of ${story}`, () => tell(false)] as [string, () => void]] : []),
  ];
  return html`<header class="top">
    <a class="skip" href="#main" @click=${(event: Event) => {
      event.preventDefault();
      document.getElementById("main")?.focus();
    }}>Skip to the picture</a>
    <h1>Attention</h1>
    <div class="tabs" role="group" aria-label="Views">${views.map(
      (each) =>
        html`<button type="button" aria-pressed=${view === each} @click=${() => go(each)}>${NAMES[each]}</button>`,
    )}</div>
    ${models}
    <nav aria-label="Service">
      <button type="button" class="quiet" @click=${input}>Input</button>
      ${menu("Export", "Export", items)}
      <a href="docs">API</a>
      <button type="button" class="quiet" aria-label="Light or dark" title="Light or dark" @click=${theme}>◐</button></nav>
  </header>`;
}
