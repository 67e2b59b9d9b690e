// The rows of the steps' table: a column a key, from vectors through scores and weights to what is blended.
import { html, nothing, type TemplateResult } from "lit-html";
import { allowed } from "../../api/ask.ts";
import { cut, number, share } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import type { Prediction } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";
import { mostOf, strip } from "./scene.ts";
import { type Tour, unlearned } from "./tour.ts";

export type RowName =
  | "v"
  | "rawScore"
  | "rawWeight"
  | "rawPart"
  | "rawSum"
  | "q"
  | "k"
  | "score"
  | "weight"
  | "value"
  | "part"
  | "sum"
  | "alone"
  | "allHeads"
  | "contributions"
  | "output"
  | "answers";

/** A row of the table: cells under the keys, or one thing across all of them. */
interface Row {
  name: TemplateResult | string;
  cells?: (at: number) => TemplateResult;
  across?: TemplateResult;
}

export interface Shown {
  tour: Tour;
  exact: boolean;
  head(head: number): void;
}

/** The columns of the table: the keys. */
export function header({ picture, stages }: Tour): TemplateResult {
  return html`<tr><td></td>${stages.shown.map((key) => html`<th scope="col" class=${picture.toItself && key === stages.query ? "chosen" : ""}>${cut(picture.keys[key], 12)}</th>`)}</tr>`;
}

/** One row of the table, or several where it stands for all heads. */
export function rowsOf(name: RowName, shown: Shown, fresh: boolean): TemplateResult {
  const { shown: keys } = shown.tour.stages;
  return html`${make(name, shown).map(
    (row) => html`<tr class=${fresh ? "fresh" : ""} data-row=${name}><th scope="row">${row.name}</th>
      ${row.cells ? keys.map((_, at) => html`<td>${row.cells!(at)}</td>`) : html`<td class="across" colspan=${keys.length}>${row.across ?? nothing}</td>`}</tr>`,
  )}`;
}

function make(name: RowName, shown: Shown): Row[] {
  const { tour } = shown;
  const raw = name === "v" || name.startsWith("raw");
  if (raw && !tour.vectors)
    return name === "v" || name === "rawWeight"
      ? [
          {
            name: html`<i>v</i>`,
            across: html`<span class="quiet-text">The vectors that enter this attention are not told.</span>`,
          },
        ]
      : [];
  return raw ? rawRows(name, shown) : learnedRows(name, shown);
}

/** A number in two digits, or exactly; either way its exact value stands beside the pointer. */
function value(value: number, exact: boolean, kind: "share" | "number" = "number"): TemplateResult {
  const brief = kind === "share" ? share(value) : Number.isFinite(value) ? value.toFixed(2).replace("-", "−") : "−∞";
  return html`<span class="number" data-value=${value} data-tip=${number(value)}>${exact ? number(value) : brief}</span>`;
}

function weightCell(weight: number, exact: boolean, colour: string): TemplateResult {
  return html`${value(weight, exact, "share")}<span class="meter" aria-hidden="true"><span .style=${`width: ${(100 * Math.min(1, weight)).toFixed(1)}%; background: ${colour}`}></span></span>`;
}

const isOpen =
  ({ input, stages, picture, layer }: Tour) =>
  (key: number) =>
    allowed(input, stages.query, key, picture.queries.length, picture.keys.length, layer.causal);

function rawRows(name: RowName, { tour, exact }: Shown): Row[] {
  const { query, keys } = tour.vectors!;
  const found = unlearned(tour, isOpen(tour))!;
  const most = mostOf(query, ...keys);
  const muted = palette().muted;
  switch (name) {
    case "v":
      return [
        {
          name: html`<i>v</i> <small>vector</small>`,
          cells: (at) => strip(keys[at], `v${tour.stages.shown[at]}`, most),
        },
      ];
    case "rawScore":
      return [{ name: html`<i>v</i> · <i>v</i> <small>score</small>`, cells: (at) => value(found.scores[at], exact) }];
    case "rawWeight":
      return [
        {
          name: html`weight, <small>nothing learned</small>`,
          cells: (at) => weightCell(found.weights[at], exact, muted),
        },
      ];
    case "rawPart":
      return [
        {
          name: html`weight × <i>v</i>`,
          cells: (at) =>
            strip(
              keys[at].map((each) => each * found.weights[at]),
              `part ${at}`,
              most,
            ),
        },
      ];
    default:
      return [
        {
          name: html`<i>y</i> <small>weighted sum</small>`,
          across: html`${strip(found.blended, "y", most)}${found.whole ? nothing : html`<small class="quiet-text">over the keys that are shown</small>`}`,
        },
      ];
  }
}

function learnedRows(name: RowName, shown: Shown): Row[] {
  const { tour, exact } = shown;
  const { stages, head, input } = tour;
  const { shown: keys } = stages;
  const [q, k, v] = [stages.q[head], stages.k[head], stages.v[head]];
  const colour = headColour(palette(), head);
  const mostK = mostOf(q, ...k);
  const mostV = mostOf(stages.heads[head], ...v);
  const open = isOpen(tour);
  const rows: Partial<Record<RowName, () => Row[]>> = {
    q: () => [
      { name: html`<i>q</i> <small>query of <b class="chosen">${tour.word}</b></small>`, across: strip(q, "q", mostK) },
    ],
    k: () => [{ name: html`<i>k</i> <small>key</small>`, cells: (at) => strip(k[at], `k${keys[at]}`, mostK) }],
    score: () => [
      {
        name: html`<i>q</i> · <i>k</i> <small>score, scaled</small>`,
        cells: (at) =>
          value(open(keys[at]) ? stages.scores[head][keys[at]] / input.temperature : Number.NEGATIVE_INFINITY, exact),
      },
    ],
    weight: () => [
      {
        name: html`weight <small>softmax</small>`,
        cells: (at) => weightCell(stages.weights[head][keys[at]], exact, colour),
      },
    ],
    value: () => [{ name: html`<i>val</i> <small>value</small>`, cells: (at) => strip(v[at], `v${keys[at]}`, mostV) }],
    part: () => [
      {
        name: html`weight × <i>val</i>`,
        cells: (at) =>
          strip(
            v[at].map((each) => each * stages.weights[head][keys[at]]),
            `part ${keys[at]}`,
            mostV,
          ),
      },
    ],
    sum: () => [
      { name: html`<i>y</i> <small>their sum, head ${head}</small>`, across: strip(stages.heads[head], "head", mostV) },
    ],
    alone: () => [{ name: html`answers <small>of this head alone</small>`, across: answers(tour.alone, tour.answers) }],
    allHeads: () => range(tour.heads).map((each) => headRow(each, shown)),
    contributions: () => contributionRows(tour),
    output: () =>
      stages.output.length
        ? [
            {
              name: html`<i>y</i> <small>their sum and the bias</small>`,
              across: strip(stages.output, "y", mostOf(stages.output)),
            },
          ]
        : [],
    answers: () =>
      tour.answers.length
        ? [{ name: html`answers <small>of the model</small>`, across: answers(tour.answers, tour.answers) }]
        : [],
  };
  return rows[name]!();
}

function headRow(each: number, { tour, exact, head }: Shown): Row {
  const colour = headColour(palette(), each);
  const { stages } = tour;
  return {
    name: html`<button type="button" class="pill" aria-pressed=${each === tour.head} @click=${() => head(each)}><span class="dot" .style=${`--head: ${colour}`}></span>head ${each}</button>`,
    cells: (at) => weightCell(stages.weights[each][stages.shown[at]], exact, colour),
  };
}

function contributionRows({ contributions, stages }: Tour): Row[] {
  const parts = contributions ?? stages.heads;
  const most = mostOf(...parts);
  return parts.map((part, head) => ({
    name: html`head ${head} <small>${contributions ? html`· M<sub>O</sub>` : "its sum"}</small>`,
    across: strip(part, `part of head ${head}`, most),
  }));
}

/** Predictions; those that are not what the whole model answers stand out. */
function answers(some: Prediction[] | null, whole: Prediction[]): TemplateResult {
  if (!some?.length) return html`<span class="quiet-text">This model predicts nothing here.</span>`;
  return html`<span class="said">${some.map(({ name, label, probability }) => {
    const true_ = whole.find((each) => each.name === name);
    return html`<span class=${true_ && true_.label !== label ? "other" : ""}>${name} <b>${label}</b> ${share(probability)}</span> `;
  })}</span>`;
}
