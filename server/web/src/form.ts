// What one sequence is typed, chosen or dropped into.
import { html, nothing, type TemplateResult } from "lit-html";
import type { Model } from "./api.ts";
import { type Causal, type Input, isCross } from "./ask.ts";
import { fromNested, isShort, type Matrix, readCsv, readJson, readNpy, writeMatrix } from "./matrix.ts";
import { example } from "./state.ts";

type VectorField = "query" | "key" | "value";

export interface FormEvents {
  input(input: Input): void;
  problem(message: string): void;
}

/** Reads vectors from a file by its ending; throws an Error that says what is wrong. */
export async function readFile(file: File): Promise<Matrix | { content: unknown }> {
  const name = file.name.toLowerCase();
  if (name.endsWith(".npy")) return readNpy(await file.arrayBuffer());
  const text = await file.text();
  if (!name.endsWith(".json")) return readCsv(text);
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error("is no JSON");
  }
  return Array.isArray(content) && Array.isArray(content[0]) ? fromNested(content) : { content };
}

/** The form of one input. `name` tells two of them apart; where the model itself says the words, only its memory counts. */
export function form(
  name: string,
  models: Model[],
  input: Input,
  saysWords: boolean,
  events: FormEvents,
): TemplateResult {
  const model = models.find((each) => each.name === input.model)!;
  const change = (changes: Partial<Input>) => events.input({ ...input, ...changes });
  const value = (event: Event) => (event.target as HTMLInputElement).value;
  const id = (field: string) => `${name}-${field}`;
  return html`
    <div class="field"><label for=${id("model")}>Model</label>
      <select id=${id("model")} @change=${(event: Event) => events.input(example(models.find((each) => each.name === value(event))!))}>
        ${models.map((each) => html`<option value=${each.name} ?selected=${each === model}>${each.name}</option>`)}</select>
      <p class="hint">${model.manifest.description ?? ""}</p></div>
    ${
      model.manifest.text && !saysWords
        ? html`<div class="segmented" role="group" aria-label="Input">${(["text", "vectors"] as const).map(
            (kind) =>
              html`<button type="button" aria-pressed=${input.kind === kind} @click=${() => change({ kind })}>${kind === "text" ? "Text" : "Vectors"}</button>`,
          )}</div>`
        : nothing
    }
    ${saysWords ? sentence(id, "memoryText", "Text to translate", input, change) : nothing}
    ${saysWords ? nothing : input.kind === "text" ? texts(id, model, input, change) : vectors(id, model, input, change, events)}
    <details class="mask" ?hidden=${saysWords} ?open=${input.causal !== "none" || input.left >= 0 || input.right >= 0}><summary>Mask</summary>
      <div class="field"><label for=${id("causal")}>Causal</label>
        <select id=${id("causal")} @change=${(event: Event) => change({ causal: value(event) as Causal })}>
          ${(
            [
              ["none", "none: all is seen"],
              ["top_left", "hide the future, first positions aligned"],
              ["bottom_right", "hide the future, last positions aligned"],
            ] as const
          ).map(
            ([each, label]) => html`<option value=${each} ?selected=${input.causal === each}>${label}</option>`,
          )}</select></div>
      <div class="pair">${(["left", "right"] as const).map(
        (side) => html`<div class="field"><label for=${id(side)}>Window, ${side}</label>
          <input id=${id(side)} type="number" min="0" step="1" placeholder="all" .value=${input[side] < 0 ? "" : String(input[side])}
            @change=${(event: Event) => change({ [side]: value(event) === "" ? -1 : Math.max(0, Math.trunc(Number(value(event)))) })}></div>`,
      )}</div>
    </details>`;
}

function sentence(
  id: (field: string) => string,
  name: "text" | "memoryText",
  label: string,
  input: Input,
  change: (changes: Partial<Input>) => void,
): TemplateResult {
  return html`<div class="field"><label for=${id(name)}>${label}</label>
    <textarea id=${id(name)} rows="2" spellcheck="false" .value=${input[name]}
      @input=${(event: Event) => change({ [name]: (event.target as HTMLTextAreaElement).value })}></textarea></div>`;
}

function texts(
  id: (field: string) => string,
  model: Model,
  input: Input,
  change: (changes: Partial<Input>) => void,
): TemplateResult {
  if (!isCross(model)) return sentence(id, "text", "Text", input, change);
  return html`${sentence(id, "memoryText", "Memory: what is attended to", input, change)}
    ${sentence(id, "text", "Query: what attends", input, change)}`;
}

function vectors(
  id: (field: string) => string,
  model: Model,
  input: Input,
  change: (changes: Partial<Input>) => void,
  events: FormEvents,
): TemplateResult {
  const [layer] = model.manifest.layers;
  const field = (name: VectorField, label: string, width: number | undefined) => {
    const matrix = input[name];
    const set = (read: () => Matrix | null) => {
      try {
        change({ [name]: read() });
      } catch (error) {
        events.problem(`${name} ${(error as Error).message}`);
      }
    };
    const take = async (file: File | undefined) => {
      if (!file) return;
      try {
        const content = await readFile(file);
        if ("content" in content) throw new Error("holds no list of vectors");
        change({ [name]: content });
      } catch (error) {
        events.problem(`${file.name} ${(error as Error).message}`);
      }
    };
    const edit = (event: Event) => {
      const text = (event.target as HTMLTextAreaElement).value.trim();
      set(() => (text ? readJson(text) : null));
    };
    return html`<div class="field drop" @dragover=${(event: DragEvent) => event.preventDefault()}
        @drop=${(event: DragEvent) => {
          event.preventDefault();
          event.stopPropagation();
          take(event.dataTransfer?.files[0]);
        }}><label for=${id(name)}>${label} <span class="quiet-text">${width ? `${width} wide` : "any width"}</span></label>
      ${
        matrix && !isShort(matrix)
          ? html`<p class="file" id=${id(name)}>${matrix.rows} × ${matrix.columns} numbers
              <button type="button" class="quiet" @click=${() => change({ [name]: null })}>clear</button></p>`
          : html`<textarea id=${id(name)} rows="4" spellcheck="false" class="code" placeholder="[[1, 0], [0, 1]]"
              .value=${matrix ? writeMatrix(matrix) : ""} @change=${edit}></textarea>`
      }
      <label class="choose">choose or drop .npy, .json, .csv<input type="file" accept=".npy,.json,.csv,.tsv,.txt" aria-label=${`${label} from a file`}
        @change=${(event: Event) => {
          const input = event.target as HTMLInputElement;
          take(input.files?.[0]);
          input.value = "";
        }}></label></div>`;
  };
  const key = layer.key_dim || layer.query_dim;
  const more = isCross(model) || input.key !== null || input.value !== null;
  return html`${field("query", "Query vectors", layer.query_dim)}
    <details class="mask" ?open=${more}><summary>Other keys and values</summary>
      ${field("key", "Key vectors", key)} ${field("value", "Value vectors", layer.value_dim || key)}</details>`;
}
