// The choice of a layer, where there are several.
import { html, nothing, type TemplateResult } from "lit-html";

export function layerChoice(
  layers: readonly { name: string }[],
  layer: number,
  choose: (at: number) => void,
): TemplateResult | typeof nothing {
  if (layers.length <= 1) return nothing;
  return html`<label class="field inline">layer <select @change=${(event: Event) =>
    choose((event.target as HTMLSelectElement).selectedIndex)}>${layers.map(
    ({ name }, i) => html`<option ?selected=${i === layer}>${name}</option>`,
  )}</select></label>`;
}
