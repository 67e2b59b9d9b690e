// What can be changed in any view, what was, and the way back.
import { html, type TemplateResult } from "lit-html";
import { saidChanges } from "./changes.ts";
import type { Context } from "./view.ts";

/** A slider over powers of two: 1 is the model as it is. */
export function temperatureOf(temperature: number, change: (temperature: number) => void): TemplateResult {
  const read = (event: Event) => 2 ** Number((event.target as HTMLInputElement).value);
  return html`<span class="temperature"><label for="temperature">temperature</label> <b>${temperature}</b>
    <input id="temperature" type="range" min="-3" max="3" step="1" .value=${String(Math.log2(temperature))} aria-valuetext=${String(temperature)}
      @change=${(event: Event) => change(read(event))}></span>`;
}

/** The temperature, what is changed in words, and a button that undoes all of it; a hint stands where nothing is changed. */
export function whatIf({ state, model, edit }: Context, keys: string[], hint = ""): TemplateResult {
  const said = saidChanges(state.a, keys, model);
  return html`<div class="what-if">${temperatureOf(state.a.temperature, (to) => edit({ temperature: to }))}<p class="changes" role="status">${
    said.length
      ? html`<b>Changed:</b> ${said.join(", ")} <button type="button" class="quiet" @click=${() => edit({ hidden: [], off: [], temperature: 1 })}>undo all</button>`
      : html`<span class="hint">${hint}</span>`
  }</p></div>`;
}
