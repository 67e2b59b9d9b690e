// The viewer of one picture, in a file of its own: what the page exports, and what the Python client writes.
import { html, render } from "lit-html";
import { onSystemChange } from "./drawing/palette.ts";
import { readPicture } from "./drawing/picture.ts";
import { HeadsView } from "./views/heads/heads.ts";

const root = document.getElementById("viewer")!;
const picture = readPicture(JSON.parse(document.getElementById("picture")!.textContent ?? "null"));
const view = new HeadsView(() => undefined);
view.state.lock = picture.focus === null ? null : { query: picture.focus, key: null };
let layer = picture.layers.length - 1;

function show(): void {
  const chooseLayer = html`<label class="field inline">layer
    <select @change=${(event: Event) => {
      layer = (event.target as HTMLSelectElement).selectedIndex;
      show();
    }}>${picture.layers.map(({ name }, i) => html`<option ?selected=${i === layer}>${name}</option>`)}</select></label>`;
  const said = picture.predictions.slice(0, 6);
  render(
    html`<main class="viewer">
      <header><h1>${picture.title || "Attention weights"}</h1>
        <p class="quiet-text">${picture.model}${picture.version ? ` ${picture.version}` : ""}</p></header>
      ${said.length ? html`<p class="said">${said.map((each) => html`<span>${each.name} <b>${each.label}</b> ${each.probability.toFixed(2)}</span> `)}</p>` : ""}
      ${picture.layers.length > 1 ? chooseLayer : ""}
      ${view.element}
    </main>`,
    root,
  );
  view.show(picture, layer, null);
}

document.title = picture.title || document.title;
show();
onSystemChange(show);
