// What the stages have in common: the numbers of a scene, and the drawings and tables of vectors.
import { html, nothing, svg, type TemplateResult } from "lit-html";
import type { Layer, Model } from "../../api/api.ts";
import { allowed, type Stages } from "../../api/ask.ts";
import { cut, number, token } from "../../drawing/format.ts";
import { palette } from "../../drawing/palette.ts";
import type { Picture } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import type { Input } from "../../state/state.ts";

/** What a stage is drawn from. */
export interface Scene {
  model: Model;
  layer: Layer;
  input: Input;
  picture: Picture;
  stages: Stages;
  head: number;
}

export interface Stage {
  id: string;
  name: string;
  /** As the pipeline's picture has it. */
  symbol: string;
  lead(scene: Scene): TemplateResult | string;
  formula(scene: Scene): TemplateResult;
  shapes(scene: Scene): [string, number[]][];
  figure(scene: Scene): TemplateResult;
}

// --- numbers of the scene --------------------------------------------------------------------------------------------

export const query = ({ picture, stages }: Scene) => token(picture.queries[stages.query]);
export const keyName = ({ picture }: Scene, key: number) => cut(picture.keys[key], 18);
export const sizes = ({ picture, stages, head }: Scene) => ({
  H: stages.q.length,
  T: picture.queries.length,
  S: picture.keys.length,
  Dh: stages.q[head].length,
  Dv: stages.heads[head].length,
  D: stages.output.length,
});
export const isOpen = (scene: Scene, key: number) => {
  const { T, S } = sizes(scene);
  return allowed(scene.input, scene.stages.query, key, T, S, scene.layer.causal);
};
/** The score that the softmax takes: masked, and divided by the temperature. */
export const masked = (scene: Scene, key: number) =>
  isOpen(scene, key) ? scene.stages.scores[scene.head][key] / scene.input.temperature : Number.NEGATIVE_INFINITY;

export function softmax(scene: Scene): { most: number; powers: number[]; sum: number } {
  const scores = range(scene.picture.keys.length).map((key) => masked(scene, key));
  // A key of zeros has the score 0; neither its score nor its weight is in the answer.
  const zeroKey = scene.layer.zero_key ? 0 : Number.NEGATIVE_INFINITY;
  const most = scores.reduce((a, b) => Math.max(a, b), zeroKey);
  const powers = scores.map((score) => (most === Number.NEGATIVE_INFINITY ? 0 : Math.exp(score - most)));
  return { most, powers, sum: powers.reduce((a, b) => a + b, zeroKey === 0 ? Math.exp(-most) : 0) };
}

export const combines = ({ model }: Scene) => ["multi_head", "cross_attention"].includes(model.manifest.block);
export const learned = ({ model }: Scene) => model.manifest.block !== "dot_product";

// --- drawings --------------------------------------------------------------------------------------------------------

/** The position before a token, where the token is not the position itself. */
function place(name: string, at: number): TemplateResult | typeof nothing {
  return name === String(at) ? nothing : html`<span class="place">${at}</span> `;
}

/** A vector as a strip of cells, coloured around zero; each tells its number. */
export function strip(values: ArrayLike<number>, name: string, most: number, fade = 1): TemplateResult {
  const colours = palette();
  const columns = Math.min(values.length, values.length > 64 ? 48 : 32);
  const rows = Math.ceil(values.length / columns);
  return html`<svg class="strip-of-numbers" role="img" aria-label=${`${name}, ${values.length} numbers`}
    viewBox="0 0 ${columns * 10} ${rows * 16}" .style=${`--columns: ${columns}`} opacity=${Math.max(0.12, fade)}>
    ${Array.from(
      values,
      (value, at) => svg`<rect x=${(at % columns) * 10} y=${Math.floor(at / columns) * 16} width="9.2" height="15"
        rx="1.5" fill=${colours.difference(most ? value / most : 0)} data-tip=${`${name}[${at}] = ${number(value)}`}/>`,
    )}</svg>`;
}

export function mostOf(...vectors: ArrayLike<number>[]): number {
  return vectors.reduce((most, vector) => Array.from(vector).reduce((a, b) => Math.max(a, Math.abs(b)), most), 0);
}

/** A number on a bar from zero. */
export function bar(value: number, most: number, tip: string, negative = false): TemplateResult {
  const { accent, muted } = palette();
  const finite = Number.isFinite(value) && most > 0;
  const width = finite ? (Math.abs(value) / most) * (negative ? 50 : 100) : 0;
  const start = negative ? (value < 0 ? 50 - width : 50) : 0;
  return html`<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true" data-tip=${tip}>
    <rect width="100" height="12" fill="transparent" data-tip=${tip} />
    ${negative ? svg`<rect x="49.8" width="0.4" height="12" fill=${muted} />` : nothing}
    <rect x=${start} y="1" width=${width} height="10" fill=${value < 0 ? muted : accent} data-tip=${tip} /></svg>`;
}

export const BAR = html`<span class="unseen">as a bar</span>`;

interface Column {
  name: string | TemplateResult;
  cell(key: number, at: number): TemplateResult | string;
  total?: TemplateResult | string;
  wide?: boolean;
}

/** One line a key. */
export function keys(scene: Scene, columns: Column[]): TemplateResult {
  const { shown } = scene.stages;
  const all = scene.picture.keys.length;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="One line a key"><table class="keys">
    <thead><tr><th scope="col">key</th>${columns.map(({ name, wide }) => html`<th scope="col" class=${wide ? "wide" : ""}>${name}</th>`)}</tr></thead>
    <tbody>${shown.map(
      (key, at) => html`<tr class=${isOpen(scene, key) ? "" : "hidden-key"}>
        <th scope="row">${place(scene.picture.keys[key], key)}<span class="key-name">${keyName(scene, key)}</span></th>
        ${columns.map(({ cell, wide }) => html`<td class=${wide ? "wide" : ""}>${cell(key, at)}</td>`)}</tr>`,
    )}</tbody>
    ${
      columns.some(({ total }) => total !== undefined)
        ? html`<tfoot><tr><th scope="row">all ${all} keys</th>${columns.map(({ total }) => html`<td>${total ?? ""}</td>`)}</tr></tfoot>`
        : nothing
    }</table></div>
    ${shown.length < all ? html`<p class="aside">${shown.length} of ${all} keys: those that weigh most for head ${scene.head}. Sums run over all.</p>` : nothing}`;
}

export const scoreColumn = (scene: Scene): Column => ({
  name: html`score <i>s</i>`,
  cell: (key) => html`<span class="number">${number(scene.stages.scores[scene.head][key])}</span>`,
});
