// The sentence of an input: edited in place, with an unknown word underlined and near words to click.
import { html, nothing, type TemplateResult } from "lit-html";
import { isCross, type Model } from "../api/api.ts";
import type { Input } from "../state/state.ts";
import type { Unknown } from "./problem.ts";

export interface SentenceEvents {
  /** What is typed; `now` where it need not settle. */
  input(changes: Partial<Input>, now: boolean): void;
  /** Opens the drawer. */
  open(): void;
}

const FIELDS = ["text", "pair", "memoryText"] as const;
type Field = (typeof FIELDS)[number];

/** @param translates whether the model itself says the words, so that the source alone is typed */
export function sentence(
  id: string,
  model: Model,
  input: Input,
  translates: boolean,
  unknown: Unknown | null,
  events: SentenceEvents,
): TemplateResult {
  if (input.kind === "vectors")
    return html`<div class="sentence"><p class="given" id=${`${id}-given`}>${shapes(input)}</p>${more("Change the vectors", events)}</div>`;
  const cross = isCross(model);
  const fields: [Field, string][] = translates
    ? [["memoryText", "Text to translate"]]
    : [
        ...(cross ? ([["memoryText", "Source, which is attended to"]] as [Field, string][]) : []),
        ...(input.kind === "text"
          ? ([["text", cross ? "Target, which attends" : "Sentence"]] as [Field, string][])
          : []),
        ...(input.pair === null || input.kind === "ids" ? [] : ([["pair", "Second text"]] as [Field, string][])),
      ];
  return html`<div class="sentence">
    ${fields.map(([name, label]) => field(`${id}-${name}`, name, label, fields.length > 1, input, unknown, events))}
    ${input.kind === "ids" ? html`<p class="given">token ids ${input.ids.join(" ")}</p>${more("Change the ids", events)}` : nothing}
  </div>`;
}

function field(
  id: string,
  name: Field,
  label: string,
  named: boolean,
  input: Input,
  unknown: Unknown | null,
  events: SentenceEvents,
): TemplateResult {
  const text = input[name] ?? "";
  const value = (event: Event) => (event.target as HTMLInputElement).value;
  const follow = (event: Event) => {
    const typed = event.target as HTMLInputElement;
    (typed.previousElementSibling as HTMLElement).scrollLeft = typed.scrollLeft;
  };
  return html`<div class="sentence-field">
    <label for=${id} class=${named ? "" : "unseen"}>${label}</label>
    <div class="sentence-box"><div class="mirror" aria-hidden="true">${marked(text, unknown?.word)}</div>
      <input id=${id} type="text" autocomplete="off" autocapitalize="off" spellcheck="false" .value=${text}
        aria-invalid=${unknown && wordAt(text, unknown.word) >= 0 ? "true" : "false"}
        @input=${(event: Event) => events.input({ [name]: value(event) }, false)} @scroll=${follow}
        @keydown=${(event: KeyboardEvent) => event.key === "Enter" && events.input({ [name]: value(event) }, true)}></div></div>`;
}

function more(label: string, events: SentenceEvents): TemplateResult {
  return html`<button type="button" @click=${() => events.open()}>${label}</button>`;
}

function shapes({ query, key, value }: Input): string {
  const named = Object.entries({ queries: query, keys: key, values: value }).flatMap(([name, matrix]) =>
    matrix ? [`${matrix.rows} ${name} of ${matrix.columns} numbers`] : [],
  );
  return named.join(", ") || "no vectors yet";
}

function marked(text: string, word: string | undefined): (string | TemplateResult)[] {
  const at = word ? wordAt(text, word) : -1;
  return at < 0 ? [text] : [text.slice(0, at), html`<u>${word}</u>`, text.slice(at + word!.length)];
}

/** Where a word stands by itself in a text, else where its letters do; -1 where they do not. */
function wordAt(text: string, word: string): number {
  const alone = text
    .split(/(\s+)/)
    .reduce<{ at: number; found: number }>(
      ({ at, found }, part) => ({ at: at + part.length, found: found < 0 && part === word ? at : found }),
      { at: 0, found: -1 },
    ).found;
  return alone >= 0 ? alone : text.indexOf(word);
}

/** The words near an unknown one, each of which replaces it in the input and the field where it stands. */
export function nearWords(
  { word, near }: Unknown,
  inputs: { readonly a: Input; readonly b: Input | null },
  change: (which: "a" | "b", changes: Partial<Input>) => void,
): TemplateResult | typeof nothing {
  for (const which of ["a", "b"] as const) {
    const input = inputs[which];
    const name = input && FIELDS.find((each) => wordAt(input[each] ?? "", word) >= 0);
    if (!near.length || !name) continue;
    const text = input[name]!;
    const at = wordAt(text, word);
    const put = (each: string) => text.slice(0, at) + each + text.slice(at + word.length);
    return html`<p class="near">Near <b>${word}</b>: ${near.map(
      (each) => html`<button type="button" @click=${() => change(which, { [name]: put(each) })}>${each}</button> `,
    )}</p>`;
  }
  return nothing;
}
