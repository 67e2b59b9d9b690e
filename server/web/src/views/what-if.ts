// The temperature of the softmax, as something to try.
import { html, type TemplateResult } from "lit-html";

/** A slider over powers of two: 1 is the model as it is. */
export function temperatureOf(temperature: number, change: (temperature: number) => void): TemplateResult {
  const read = (event: Event) => 2 ** Number((event.target as HTMLInputElement).value);
  return html`<span class="temperature"><label for="temperature">temperature</label> <b>${temperature}</b>
    <input id="temperature" type="range" min="-3" max="3" step="1" .value=${String(Math.log2(temperature))} aria-valuetext=${String(temperature)}
      @change=${(event: Event) => change(read(event))}></span>`;
}
