// The viewer of one picture, in a file of its own: what the page exports, and what the Python client writes.
import { html, nothing, render, type TemplateResult } from "lit-html";
import { onSystemChange, palette } from "./drawing/palette.ts";
import { readPicture } from "./drawing/picture.ts";
import { range } from "./drawing/weights.ts";
import { type Cell, grid, paintHead } from "./views/atlas/thumbnails.ts";
import { HeadsView } from "./views/heads/heads.ts";
import { layerChoice } from "./views/heads/layers.ts";

const root = document.getElementById("viewer")!;
const content = JSON.parse(document.getElementById("picture")!.textContent ?? "null");
const picture = readPicture(content);
const view = new HeadsView(() => undefined);
view.state.lock = picture.focus === null ? null : { query: picture.focus, key: null };
if (content.style === "lines") view.state.style = "lines";
let layer = picture.layers.length - 1;

const cells = picture.layers.flatMap(({ name, weights }, at) =>
  range(weights.heads).map(
    (head): Cell => ({ layer: at, layerName: name, head, badge: null, found: null, counts: true, off: false }),
  ),
);

/** All heads of several layers, each of which can be opened. */
function atlas(): TemplateResult | typeof nothing {
  const { layers } = picture;
  if (layers.length < 2) return nothing;
  const columns = Math.max(...layers.map(({ weights }) => weights.heads));
  const whole = layers.every(({ weights }) => weights.complete);
  const most = whole ? 1 : Math.max(...layers.map(({ weights }) => weights.most));
  const [head] = view.state.heads;
  const chosen = cells.find((cell) => cell.layer === layer && cell.head === head);
  const paint = (cell: Cell, canvas: HTMLCanvasElement) =>
    paintHead(canvas, layers[cell.layer].weights, cell.head, most, palette());
  return grid(cells, columns, true, chosen ?? cells[0], undefined, paint, {
    choose: (cell) => {
      layer = cell.layer;
      view.state.heads = [cell.head];
      show();
    },
  });
}

function show(): void {
  const chooseLayer = layerChoice(picture.layers, layer, (at) => {
    layer = at;
    show();
  });
  const said = picture.predictions.slice(0, 6);
  render(
    html`<main class="viewer">
      <header><h1>${picture.title || "Attention weights"}</h1>
        <p class="quiet-text">${picture.model}${picture.version ? ` ${picture.version}` : ""}</p></header>
      ${said.length ? html`<p class="said">${said.map((each) => html`<span>${each.name} <b>${each.label}</b> ${each.probability.toFixed(2)}</span> `)}</p>` : ""}
      ${atlas()}
      ${chooseLayer}
      ${view.element}
    </main>`,
    root,
  );
  view.show(picture, layer, null);
}

document.title = picture.title || document.title;
show();
onSystemChange(show);
