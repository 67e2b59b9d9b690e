// Menus that close: by Escape, by a choice, and by a click elsewhere.
import { html, nothing, type TemplateResult } from "lit-html";
import type { Model } from "../api/api.ts";
import { type Example, examples } from "../state/examples.ts";

/** Closes open menus from now on. */
export function closeMenus(): void {
  const shut = (besides: Node | null) => {
    for (const menu of document.querySelectorAll<HTMLDetailsElement>("details.menu[open]"))
      if (!besides || !menu.contains(besides)) menu.open = false;
  };
  addEventListener("pointerdown", (event) => shut(event.target as Node));
  addEventListener("focusin", (event) => shut(event.target as Node));
  addEventListener("keydown", (event) => {
    const open = document.querySelector<HTMLDetailsElement>("details.menu[open]");
    if (event.key !== "Escape" || !open) return;
    const within = open.contains(document.activeElement);
    open.open = false;
    if (within) open.querySelector("summary")!.focus();
    event.stopImmediatePropagation();
  });
}

/** Does what a menu's button says, and closes the menu. */
function choose(act: () => void): (event: Event) => void {
  return (event) => {
    const menu = (event.currentTarget as HTMLElement).closest<HTMLDetailsElement>("details.menu");
    if (menu) menu.open = false;
    act();
  };
}

export function menu(label: string, title: string, items: [string, () => void][]): TemplateResult {
  return html`<details class="menu"><summary aria-label=${title}>${label}</summary><div class="menu-list">
    ${items.map(([name, act]) => html`<button type="button" @click=${choose(act)}>${name}</button>`)}</div></details>`;
}

/** The models, each with a line and sentences to try. */
export function modelMenu(
  label: string,
  models: readonly Model[],
  current: Model,
  pick: (model: Model, example: Example | null) => void,
): TemplateResult {
  return html`<details class="menu models"><summary aria-label=${`${label}: ${current.name}`}><span class="model-name">${current.name}</span></summary>
    <div class="menu-list">${models.map(
      (model) => html`<section class=${model === current ? "current" : ""}>
        <button type="button" class="model" aria-pressed=${model === current} @click=${choose(() => pick(model, null))}>
          <b>${model.name}</b><span class="quiet-text">${sizeOf(model)}</span></button>
        ${model.manifest.description ? html`<p class="hint">${model.manifest.description}</p>` : nothing}
        ${examples(model).map(
          (each) =>
            html`<button type="button" class="example" @click=${choose(() => pick(model, each))}>${[each.memoryText, each.text].filter(Boolean).join(" → ")}${each.note ? html` <span class="quiet-text">${each.note}</span>` : nothing}</button>`,
        )}</section>`,
    )}</div></details>`;
}

function sizeOf({ manifest: { layers, architecture } }: Model): string {
  const heads = layers.reduce((sum, layer) => sum + layer.heads, 0);
  const count = (number: number, name: string) => `${number} ${name}${number === 1 ? "" : "s"}`;
  return [architecture, count(layers.length, "layer"), count(heads, "head")].filter(Boolean).join(", ");
}
