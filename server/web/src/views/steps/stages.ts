// The stages of one query position, one a screen: what is computed, its formula, its shapes, and the real numbers.
import { html, nothing, svg, type TemplateResult } from "lit-html";
import { isCross } from "../../api/api.ts";
import { allowed, scaleOf } from "../../api/ask.ts";
import { row as vectorOf } from "../../api/matrix.ts";
import { brief, cut, number, token, weight as written } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import { range } from "../../drawing/weights.ts";
import {
  BAR,
  bar,
  combines,
  isOpen,
  keyName,
  keys,
  learned,
  masked,
  mostOf,
  query,
  type Scene,
  type Stage,
  scoreColumn,
  sizes,
  softmax,
  strip,
} from "./scene.ts";

const sequence: Stage = {
  id: "sequence",
  name: "The sequence",
  symbol: "v",
  lead: (scene) =>
    isCross(scene.model)
      ? html`Two sequences: <b>queries</b> come from one, <b>keys and values</b> from the other. Position
          ${scene.stages.query}, <b class="chosen">${query(scene)}</b>, asks; its output is what the next screens build.`
      : html`A sequence is a list of vectors, one for each position. Position ${scene.stages.query},
          <b class="chosen">${query(scene)}</b>, asks: how much of each position goes into its output?`,
  formula: ({ picture }) =>
    picture.toItself
      ? html`<math display="block"><msub><mi>v</mi><mn>1</mn></msub><mo>,</mo><mo>…</mo><mo>,</mo><msub><mi>v</mi><mi>T</mi></msub></math>`
      : html`<math display="block"><msub><mi>x</mi><mn>1</mn></msub><mo>,</mo><mo>…</mo><mo>,</mo><msub><mi>x</mi><mi>T</mi></msub><mspace width="1.5em"></mspace><msub><mi>v</mi><mn>1</mn></msub><mo>,</mo><mo>…</mo><mo>,</mo><msub><mi>v</mi><mi>S</mi></msub></math>`,
  shapes: (scene) => {
    const { T, S } = sizes(scene);
    const width = scene.layer.query_dim || scene.input.query?.columns || 0;
    return scene.picture.toItself
      ? [["v", [T, width]]]
      : [
          ["queries", [T, width]],
          ["keys", [S, scene.layer.key_dim || width]],
        ];
  },
  figure: (scene) => {
    const { picture, stages, input } = scene;
    const list = (names: string[], marked: number | null) => {
      const from = Math.max(0, Math.min((marked ?? 0) - 12, names.length - 24));
      return html`<ol class="tokens" start=${from}>${names
        .slice(from, from + 24)
        .map(
          (name, i) =>
            html`<li class=${from + i === marked ? "chosen" : ""}><span class="place">${from + i}</span> ${cut(name, 24)}</li>`,
        )}</ol>${names.length > 24 ? html`<p class="aside">24 of ${names.length} positions.</p>` : nothing}`;
    };
    if (input.kind === "vectors" && input.query) {
      const { query } = input;
      const from = Math.max(0, Math.min(stages.query - 6, query.rows - 12));
      const rows = range(Math.min(query.rows, 12)).map((i) => from + i);
      const most = mostOf(...rows.map((i) => vectorOf(query, i)));
      return html`<table class="keys"><tbody>${rows.map(
        (
          i,
        ) => html`<tr class=${i === stages.query ? "chosen-row" : ""}><th scope="row"><span class="place">${i}</span> v</th>
          <td class="wide">${strip(vectorOf(query, i), `v${i}`, most)}</td></tr>`,
      )}</tbody></table>`;
    }
    return html`${list(picture.queries, stages.query)}
      ${picture.toItself ? nothing : html`<p class="aside">attends to</p>${list(picture.keys, null)}`}
      <p class="aside">The model's front turns each token into a vector; it is not part of any answer, so the numbers begin with q, k and v.</p>`;
  },
};

const projections: Stage = {
  id: "qkv",
  name: "Query, keys, values",
  symbol: "q k v",
  lead: (scene) =>
    learned(scene)
      ? html`Three trained matrices turn each vector into a <b>query</b> (what it looks for), a <b>key</b> (what it is
          found by) and a <b>value</b> (what it gives). Each head has its own; this is head ${scene.head}.`
      : html`Nothing is learned here: query, key and value are the vectors themselves, used twice.`,
  formula: (scene) =>
    learned(scene)
      ? html`<math display="block"><msub><mi>q</mi><mi>i</mi></msub><mo>=</mo><msub><mi>v</mi><mi>i</mi></msub><msub><mi>M</mi><mi>Q</mi></msub><mspace width="1.5em"></mspace><msub><mi>k</mi><mi>j</mi></msub><mo>=</mo><msub><mi>v</mi><mi>j</mi></msub><msub><mi>M</mi><mi>K</mi></msub><mspace width="1.5em"></mspace><msub><mtext>val</mtext><mi>j</mi></msub><mo>=</mo><msub><mi>v</mi><mi>j</mi></msub><msub><mi>M</mi><mi>V</mi></msub></math>`
      : html`<math display="block"><msub><mi>q</mi><mi>i</mi></msub><mo>=</mo><msub><mi>k</mi><mi>i</mi></msub><mo>=</mo><msub><mtext>val</mtext><mi>i</mi></msub><mo>=</mo><msub><mi>v</mi><mi>i</mi></msub></math>`,
  shapes: (scene) => {
    const { H, T, S, Dh, Dv } = sizes(scene);
    return [
      ["q", [H, T, Dh]],
      ["k", [H, S, Dh]],
      ["v", [H, S, Dv]],
    ];
  },
  figure: (scene) => {
    const { stages, head } = scene;
    const [q, k, v] = [stages.q[head], stages.k[head], stages.v[head]];
    const mostK = mostOf(q, ...k);
    const mostV = mostOf(...v);
    return html`<div class="asked"><span class="asked-name"><i>q</i> of <b class="chosen">${query(scene)}</b></span>${strip(q, "q", mostK)}</div>
      ${keys(scene, [
        { name: html`<i>k</i>`, wide: true, cell: (key, at) => strip(k[at], `k${key}`, mostK) },
        { name: html`<i>v</i>`, wide: true, cell: (key, at) => strip(v[at], `v${key}`, mostV) },
      ])}`;
  },
};

const scores: Stage = {
  id: "scores",
  name: "Scores",
  symbol: "q · k",
  lead: (scene) => html`The query of <b class="chosen">${query(scene)}</b> is compared with every key, by a dot product:
    multiply number by number, add up, and scale. Point at a bar to see the sum.`,
  formula: (scene) =>
    scene.layer.softcap
      ? html`<math display="block"><msub><mi>s</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mi>c</mi><mo>tanh</mo><mo>(</mo><mi>scale</mi><mspace width="0.3em"></mspace><msub><mi>q</mi><mi>i</mi></msub><mo>·</mo><msub><mi>k</mi><mi>j</mi></msub><mo>/</mo><mi>c</mi><mo>)</mo><mo>,</mo><mi>c</mi><mo>=</mo><mn>${scene.layer.softcap}</mn></math>`
      : html`<math display="block"><msub><mi>s</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mn>${number(scaleOf(scene.layer, sizes(scene).Dh))}</mn><mo>×</mo><mo>(</mo><msub><mi>q</mi><mi>i</mi></msub><mo>·</mo><msub><mi>k</mi><mi>j</mi></msub><mo>)</mo></math>`,
  shapes: (scene) => {
    const { H, T, S } = sizes(scene);
    return [["scores", [H, T, S]]];
  },
  figure: (scene) => {
    const { stages, head, layer } = scene;
    const [q, k] = [stages.q[head], stages.k[head]];
    const mostK = mostOf(q, ...k);
    const most = mostOf(stages.shown.map((key) => stages.scores[head][key]));
    const sum = (key: number, at: number) => {
      const dot = k[at].reduce((total, each, d) => total + each * q[d], 0);
      const scale = scaleOf(layer, q.length);
      return `${number(scale)} × (${brief(k[at][0] * q[0])} + … = ${number(dot)}) = ${number(stages.scores[head][key])}`;
    };
    return html`<div class="asked"><span class="asked-name"><i>q</i> of <b class="chosen">${query(scene)}</b></span>${strip(q, "q", mostK)}</div>
      ${keys(scene, [
        { name: html`<i>k</i>`, wide: true, cell: (key, at) => strip(k[at], `k${key}`, mostK) },
        { name: BAR, cell: (key, at) => bar(stages.scores[head][key], most, sum(key, at), true) },
        scoreColumn(scene),
      ])}`;
  },
};

const mask: Stage = {
  id: "mask",
  name: "Mask",
  symbol: "mask",
  lead: (scene) => {
    const { S } = sizes(scene);
    const hidden = range(S).filter((key) => !isOpen(scene, key)).length;
    return hidden
      ? html`${hidden} of ${S} keys are hidden from <b class="chosen">${query(scene)}</b>: their score becomes −∞, so that
          their weight will be nothing.`
      : html`A mask hides keys, such as the future, by a score of −∞. Here <b class="chosen">${query(scene)}</b> may look
          everywhere: choose a causal mask or a window beside the input to see one at work.`;
  },
  formula: () =>
    html`<math display="block"><msub><mi>m</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mrow><mo>{</mo><mtable columnalign="left"><mtr><mtd><msub><mi>s</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub></mtd><mtd><mtext>where i may attend to j</mtext></mtd></mtr><mtr><mtd><mo>−</mo><mi>∞</mi></mtd><mtd><mtext>elsewhere</mtext></mtd></mtr></mtable></mrow></math>`,
  shapes: (scene) => {
    const { T, S } = sizes(scene);
    return [["mask", [T, S]]];
  },
  figure: (scene) =>
    html`<div class="beside">${keys(scene, [
      scoreColumn(scene),
      { name: "may attend", cell: (key) => (isOpen(scene, key) ? "yes" : "no") },
      { name: "masked", cell: (key) => html`<span class="number">${number(masked(scene, key))}</span>` },
    ])}${maskPicture(scene)}</div>`,
};

function maskPicture(scene: Scene): TemplateResult | typeof nothing {
  const { T, S } = sizes(scene);
  if (Math.max(T, S) > 32) return nothing;
  const colours = palette();
  const size = Math.min(22, 280 / Math.max(T, S));
  return html`<figure class="mask-picture"><svg role="img" aria-label="Which keys each query may attend to"
    width=${S * size + 2} height=${T * size + 2}>${range(T).map((i) =>
      range(S).map(
        (j) => svg`<rect x=${j * size + 1} y=${i * size + 1} width=${size - 1.5} height=${size - 1.5} rx="2"
          fill=${allowed(scene.input, i, j, T, S) ? (i === scene.stages.query ? colours.accent : colours.muted) : "transparent"}
          stroke=${colours.muted} stroke-width="0.6" data-tip=${`${token(scene.picture.queries[i])} → ${keyName(scene, j)}: ${allowed(scene.input, i, j, T, S) ? "may attend" : "hidden"}`}/>`,
      ),
    )}</svg><figcaption>queries down, keys across; filled: may attend</figcaption></figure>`;
}

const powers: Stage = {
  id: "softmax",
  name: "Softmax",
  symbol: "exp",
  lead: () => html`Softmax makes shares of scores. First the exponential, which makes all positive and lets large scores stand out; the
    largest is subtracted before, which changes no share and keeps the numbers small.`,
  formula: () =>
    html`<math display="block"><msub><mi>e</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mi>exp</mi><mo>(</mo><msub><mi>m</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>−</mo><munder><mi>max</mi><mi>j</mi></munder><mspace width="0.2em"></mspace><msub><mi>m</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>)</mo></math>`,
  shapes: (scene) => {
    const { H, T, S } = sizes(scene);
    return [["exp", [H, T, S]]];
  },
  figure: (scene) => {
    const { most, powers, sum } = softmax(scene);
    return keys(scene, [
      {
        name: "masked score",
        cell: (key) => html`<span class="number">${number(masked(scene, key))}</span>`,
        total: html`max ${number(most)}`,
      },
      {
        name: "less the largest",
        cell: (key) => html`<span class="number">${number(masked(scene, key) - most)}</span>`,
      },
      {
        name: BAR,
        cell: (key) => bar(powers[key], 1, `exp(${number(masked(scene, key) - most)}) = ${number(powers[key])}`),
      },
      {
        name: "exp",
        cell: (key) => html`<span class="number">${number(powers[key])}</span>`,
        total: html`sum ${number(sum)}`,
      },
    ]);
  },
};

const weights: Stage = {
  id: "weights",
  name: "Weights",
  symbol: "w",
  lead: (scene) => html`Each is divided by their sum. These are the <b>attention weights</b> of
    <b class="chosen">${query(scene)}</b>: none is negative, and together they are
    ${scene.layer.zero_key ? "less than 1, since each query also attends to a key of zeros" : "1"}.`,
  formula: () =>
    html`<math display="block"><msub><mi>w</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mfrac><msub><mi>e</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mrow><munder><mo>∑</mo><mi>j</mi></munder><msub><mi>e</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub></mrow></mfrac></math>`,
  shapes: (scene) => {
    const { H, T, S } = sizes(scene);
    return [["weights", [H, T, S]]];
  },
  figure: (scene) => {
    const { powers, sum } = softmax(scene);
    const row = scene.stages.weights[scene.head];
    return html`${keys(scene, [
      {
        name: "exp",
        cell: (key) => html`<span class="number">${number(powers[key])}</span>`,
        total: html`sum ${number(sum)}`,
      },
      { name: BAR, cell: (key) => bar(row[key], 1, `${number(powers[key])} / ${number(sum)} = ${number(row[key])}`) },
      {
        name: html`weight <i>w</i>`,
        cell: (key) =>
          html`<b class="number weight" data-key=${key} data-tip=${number(row[key])}>${written(row[key])}</b>`,
        total: html`sum ${row.reduce((a, b) => a + b, 0).toFixed(4)}`,
      },
    ])}
    <p class="note">Attention weights are not explanations by themselves: they say what was summed, and how much of it; not why
      the model answers as it does.</p>`;
  },
};

const weightedSum: Stage = {
  id: "sum",
  name: "Weighted sum",
  symbol: "Σ w v",
  lead: (
    scene,
  ) => html`Every value is multiplied by its weight, and all are added. What weighs much shows through in the
    result; what weighs nothing is gone. This is all that head ${scene.head} says for <b class="chosen">${query(scene)}</b>.`,
  formula: () =>
    html`<math display="block"><msub><mtext>head</mtext><mi>i</mi></msub><mo>=</mo><munder><mo>∑</mo><mi>j</mi></munder><msub><mi>w</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><msub><mtext>val</mtext><mi>j</mi></msub></math>`,
  shapes: (scene) => {
    const { H, T, Dv } = sizes(scene);
    return [["heads", [H, T, Dv]]];
  },
  figure: (scene) => {
    const { stages, head } = scene;
    const [row, v, result] = [stages.weights[head], stages.v[head], stages.heads[head]];
    const most = mostOf(result, ...v);
    return html`${keys(scene, [
      { name: html`weight <i>w</i>`, cell: (key) => html`<span class="number">${written(row[key])}</span>` },
      { name: html`<i>v</i>`, wide: true, cell: (key, at) => strip(v[at], `v${key}`, most, row[key]) },
    ])}
    <div class="asked result"><span class="asked-name">head ${head} of <b class="chosen">${query(scene)}</b></span>${strip(result, "head", most)}</div>`;
  },
};

const combined: Stage = {
  id: "combine",
  name: "Heads combined",
  symbol: "heads",
  lead: (scene) => {
    const { H } = sizes(scene);
    if (H === 1)
      return html`This block has one head: what it says is the whole answer, and there is nothing to combine.`;
    return html`One head is one weighted sum, and can follow one relationship at a time. So ${H} run in parallel, each with
      its own matrices: see where each looks from <b class="chosen">${query(scene)}</b>. What they say is set side by
      side${combines(scene) ? html`, and a last trained matrix mixes it` : ""}.`;
  },
  formula: (scene) =>
    combines(scene)
      ? html`<math display="block"><msub><mi>y</mi><mi>i</mi></msub><mo>=</mo><mo>[</mo><msub><mtext>head</mtext><mrow><mn>0</mn><mo>,</mo><mi>i</mi></mrow></msub><mo>;</mo><mo>…</mo><mo>;</mo><msub><mtext>head</mtext><mrow><mi>H</mi><mo>−</mo><mn>1</mn><mo>,</mo><mi>i</mi></mrow></msub><mo>]</mo><msub><mi>M</mi><mi>O</mi></msub></math>`
      : html`<math display="block"><msub><mi>y</mi><mi>i</mi></msub><mo>=</mo><msub><mtext>head</mtext><mi>i</mi></msub></math>`,
  shapes: (scene) => {
    const { H, T, Dv, D } = sizes(scene);
    return [
      ["heads side by side", [T, H * Dv]],
      ...(combines(scene) ? ([["M_O", [H * Dv, D]]] as [string, number[]][]) : []),
    ];
  },
  figure: (scene) => {
    const { stages } = scene;
    const colours = palette();
    const most = mostOf(...stages.heads);
    return html`<div class="scroll" tabindex="0" role="region" aria-label="One line a head"><table class="keys"><thead><tr>
      <th scope="col">head</th><th scope="col">looks most at</th><th scope="col" class="wide">its weighted sum</th></tr></thead><tbody>
      ${stages.heads.map((values, head) => {
        const row = stages.weights[head];
        const best = row.reduce((at, value, key) => (value > row[at] ? key : at), 0);
        return html`<tr class=${head === scene.head ? "chosen-row" : ""}><th scope="row"><span class="dot" .style=${`--head: ${headColour(colours, head)}`}></span>head ${head}</th>
          <td>${keyName(scene, best)} <span class="number">${written(row[best])}</span></td>
          <td class="wide">${strip(values, `head ${head}`, most)}</td></tr>`;
      })}</tbody></table></div>`;
  },
};

const output: Stage = {
  id: "output",
  name: "Output",
  symbol: "y",
  lead: (scene) => {
    const last = scene.layer.name === scene.model.manifest.layers.at(-1)?.name;
    return html`The new vector of <b class="chosen">${query(scene)}</b>: what it took in from the positions it attended
      to. ${last ? "" : html`The next layer goes on from here.`}`;
  },
  formula: () => html`<math display="block"><msub><mi>y</mi><mi>i</mi></msub></math>`,
  shapes: (scene) => {
    const { T, D } = sizes(scene);
    return [["output", [T, D]]];
  },
  figure: (scene) => {
    const { stages } = scene;
    const said = stages.predictions.filter(({ row }) => row === undefined || row === stages.query);
    return html`<div class="asked result"><span class="asked-name"><i>y</i> of <b class="chosen">${query(scene)}</b></span>${strip(stages.output, "y", mostOf(stages.output))}</div>
      ${
        said.length
          ? html`<h3>What the model's head reads from it</h3>
            <table class="keys"><tbody>${said.map(
              ({ name, label, probability }) => html`<tr><th scope="row">${name}</th><td><b>${label}</b></td>
                <td>${bar(probability, 1, number(probability))}</td><td class="number">${written(probability)}</td></tr>`,
            )}</tbody></table>`
          : stages.predictions.length
            ? html`<p class="aside">The model's head reads its predictions from other positions: ${[...new Set(stages.predictions.map(({ row }) => row))].map((row) => token(scene.picture.queries[row ?? 0])).join(", ")}.</p>`
            : nothing
      }`;
  },
};

export const STAGES: Stage[] = [sequence, projections, scores, mask, powers, weights, weightedSum, combined, output];
