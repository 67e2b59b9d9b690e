// A card for each head: what it looks at, what it answers, a switch, and the answer before and after.
import { html, nothing, type TemplateResult } from "lit-html";
import type { Answer } from "../../api/answer.ts";
import { cut, share } from "../../drawing/format.ts";
import { headColour, palette } from "../../drawing/palette.ts";
import type { Prediction } from "../../drawing/picture.ts";
import { isChanged, toggled } from "../../state/state.ts";
import { saidChanges } from "../changes.ts";
import type { Context } from "../view.ts";
import { answers, best, kept, type Met, said } from "./heads.ts";

export interface Cards {
  context: Context;
  before: Answer;
  after: Answer;
  met: Met[];
  query: number;
}

export function cards({ context, before, after, met, query }: Cards): TemplateResult {
  const { state } = context;
  const changed = isChanged(state.a);
  const answered = answers(before, met);
  const find = (answer: Answer, name: string) => answer.picture.predictions.find((each) => each.name === name);
  const others = said(before.picture, query).filter(({ name }) => ![...answered.values()].includes(name));
  const after_ = said(after.picture, query);
  const changes = saidChanges(state.a, before.picture.keys, context.model);
  const how = changes.length === 1 ? `with ${changes[0]}` : "with these changes";
  return html`<div class="cards">
    ${met.map((each) => {
      const name = answered.get(each.pair);
      return card(
        context,
        after,
        each,
        query,
        name,
        name ? find(before, name) : undefined,
        changed && name ? find(after, name) : undefined,
        how,
      );
    })}
    ${others.slice(0, 3).map((each) => answerCard(each, changed ? after_.find(({ name }) => name === each.name) : undefined, how))}
    ${!before.picture.predictions.length ? vectorCard(before, after, query) : nothing}
  </div>`;
}

function card(
  { state, edit }: Context,
  { picture }: Answer,
  { pair, head, layer, name, colour }: Met,
  query: number,
  answers: string | undefined,
  first: Prediction | undefined,
  now: Prediction | undefined,
  how: string,
): TemplateResult {
  const row = picture.layers[layer].weights.row(head, query);
  const ordered = Array.from(row.keys()).sort((a, b) => row[b] - row[a]);
  const { key, weight } = best(row);
  const on = !state.a.off.includes(pair);
  const { focus } = picture;
  const turn = () => edit({ off: toggled(state.a.off, pair) });
  return html`<article class="card" .style=${`--head: ${headColour(palette(), colour)}`}>
    <header><h3><span class="dot"></span>${name}${answers ? html` · ${answers}?` : nothing}</h3>
      <button type="button" role="switch" aria-checked=${on} aria-label=${`${name} on`} @click=${turn}>${on ? "on" : "off"}</button></header>
    ${
      first
        ? html`<p class="quiet-text">looks at <b>${cut(picture.keys[key] ?? "", 16)}</b> ${share(weight)}${focus === null || focus === query ? ", and" : html`; at “${cut(picture.queries[focus] ?? "", 16)}”`} the model answers</p>
          ${line(first.label, first.probability)}
          <div class="after">${
            now
              ? html`<p class="quiet-text">${how}</p>${line(now.label, now.probability, now.label !== first.label)}`
              : html`<button type="button" class="try" @click=${turn}>And without ${name}?</button>`
          }</div>`
        : html`<p class="quiet-text">looks most at</p>${ordered.slice(0, 3).map((each) => line(cut(picture.keys[each], 16), row[each]))}`
    }
  </article>`;
}

function answerCard(first: Prediction, now: Prediction | undefined, how: string): TemplateResult {
  return html`<article class="card answer"><header><h3>${first.name}</h3></header>
    <p class="quiet-text">the model answers</p>${line(first.label, first.probability)}
    <div class="after">${now ? html`<p class="quiet-text">${how}</p>${line(now.label, now.probability, now.label !== first.label)}` : nothing}</div></article>`;
}

/** Of a model that predicts nothing: how far the vector of the position turned. */
function vectorCard(before: Answer, after: Answer, query: number): TemplateResult | typeof nothing {
  const cosine = kept(before, after, query);
  if (cosine === null) return nothing;
  return html`<article class="card answer"><header><h3>vector of “${cut(before.picture.queries[query], 16)}”</h3></header>
    <p class="quiet-text">cosine to what it was before any change (1: the same)</p>${line("", Math.max(0, cosine), cosine < 0.9)}</article>`;
}

function line(label: string, value: number, other = false): TemplateResult {
  return html`<p class=${other ? "answer-line other" : "answer-line"}><b>${label}</b> <span>${share(value)}</span>
    <span class="meter" aria-hidden="true"><span .style=${`width: ${(100 * Math.min(1, value)).toFixed(1)}%`}></span></span></p>`;
}
