// The frame of the page: its head, the choice of a layer, the menu of exports.
import { html, nothing, type TemplateResult } from "lit-html";

export function top(theme: () => void): TemplateResult {
  return html`<header class="top">
          <a class="skip" href="#main" @click=${(event: Event) => {
            event.preventDefault();
            document.getElementById("main")?.focus();
          }}>Skip to the picture</a>
          <h1>Attention<span class="quiet-text"> step by step</span></h1>
          <nav aria-label="Service"><a href="docs">API</a>
            <button type="button" class="quiet" aria-label="Light or dark" title="Light or dark" @click=${theme}>◐</button></nav>
        </header>`;
}

/** The choice of a layer, where there are several. */
export function layerChoice(
  layers: { name: string }[],
  layer: number,
  choose: (at: number) => void,
): TemplateResult | typeof nothing {
  if (layers.length <= 1) return nothing;
  return html`<label class="field inline">layer <select @change=${(event: Event) =>
    choose((event.target as HTMLSelectElement).selectedIndex)}>${layers.map(
    ({ name }, i) => html`<option ?selected=${i === layer}>${name}</option>`,
  )}</select></label>`;
}

/** The menu of kinds of files, and of the link to the page. */
export function exportMenu(kinds: string[], save: (kind: string) => void): TemplateResult {
  return html`<details class="menu"><summary>Export</summary><div class="menu-list">
                ${kinds.map((kind) => html`<button type="button" @click=${() => save(kind)}>${kind}</button>`)}
                ${navigator.clipboard ? html`<button type="button" @click=${() => navigator.clipboard.writeText(location.href)}>Copy link</button>` : nothing}</div></details>`;
}
