// The drawer: what is seldom changed. Texts of a pair, ids of tokens, vectors and files, masks, and pictures of other tools.
import { html, nothing, render, type TemplateResult } from "lit-html";
import { isCross, type Model } from "../api/api.ts";
import { fromNested, isShort, type Matrix, readCsv, readJson, readNpy, writeMatrix } from "../api/matrix.ts";
import type { Causal, Input } from "../state/state.ts";

type VectorField = "query" | "key" | "value";

export interface DrawerEvents {
  input(changes: Partial<Input>): void;
  problem(message: string): void;
  /** A file of a picture. */
  open(file: File): void;
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

export class Drawer {
  readonly element = document.createElement("dialog");
  private problem = "";

  constructor(private readonly events: DrawerEvents) {
    this.element.className = "drawer";
    this.element.setAttribute("aria-label", "Input");
    this.element.addEventListener("click", (event) => {
      if (event.target === this.element) this.element.close();
    });
  }

  open(): void {
    this.problem = "";
    this.element.showModal();
  }

  /** Says inside the drawer what is wrong with something given there. */
  say(problem: string): void {
    this.problem = problem;
  }

  show(model: Model, input: Input, request: object): void {
    const change = (changes: Partial<Input>) => {
      this.problem = "";
      this.events.input(changes);
    };
    const { text } = model.manifest;
    render(
      html`<div class="drawer-body">
        <header><h2>Input of ${model.name}</h2><button type="button" @click=${() => this.element.close()}>Close</button></header>
        ${this.problem ? html`<p class="problem" role="alert">${this.problem}</p>` : nothing}
        ${
          text
            ? html`<div class="segmented" role="group" aria-label="Kind of input">${(
                [
                  ["text", "Text"],
                  ["ids", "Token ids"],
                  ["vectors", "Vectors"],
                ] as const
              ).map(
                ([kind, label]) =>
                  html`<button type="button" aria-pressed=${input.kind === kind} @click=${() => change({ kind })}>${label}</button>`,
              )}</div>`
            : nothing
        }
        ${input.kind === "vectors" ? this.vectors(model, input, change) : input.kind === "ids" ? ids(input, change) : pair(model, input, change)}
        ${mask(input, change)}
        <section><h3>Files</h3>
          <label class="choose">open a picture: JSON of this page, of :attend or of BertViz
            <input type="file" accept=".json" aria-label="Open a picture" @change=${(event: Event) => {
              const chosen = event.target as HTMLInputElement;
              const [file] = chosen.files ?? [];
              chosen.value = "";
              this.element.close();
              if (file) this.events.open(file);
            }}></label></section>
        <details><summary>This request as JSON</summary><pre class="code" tabindex="0">${JSON.stringify(request, shortened, 1)}</pre></details>
      </div>`,
      this.element,
    );
  }

  private vectors(model: Model, input: Input, change: (changes: Partial<Input>) => void): TemplateResult {
    const [layer] = model.manifest.layers;
    const key = layer.key_dim || layer.query_dim;
    const more = isCross(model) || input.key !== null || input.value !== null;
    const field = (name: VectorField, label: string, width: number | undefined) =>
      this.vectorField(name, label, width, input[name], change);
    return html`<section>${field("query", "Query vectors", layer.query_dim)}
      <details ?open=${more}><summary>Other keys and values</summary>
        ${field("key", "Key vectors", key)} ${field("value", "Value vectors", layer.value_dim || key)}</details></section>`;
  }

  private vectorField(
    name: VectorField,
    label: string,
    width: number | undefined,
    matrix: Matrix | null,
    change: (changes: Partial<Input>) => void,
  ): TemplateResult {
    const attempt = async (what: string, read: () => Promise<Matrix | null> | Matrix | null) => {
      try {
        change({ [name]: await read(), kind: "vectors" });
      } catch (error) {
        this.events.problem(`${what} ${(error as Error).message}`);
      }
    };
    const take = (file: File | undefined) =>
      file &&
      attempt(file.name, async () => {
        const content = await readFile(file);
        if ("content" in content) throw new Error("holds no list of vectors");
        return content;
      });
    const typed = (event: Event) => {
      const text = (event.target as HTMLTextAreaElement).value.trim();
      return attempt(name, () => (text ? readJson(text) : null));
    };
    return html`<div class="field drop" @dragover=${(event: DragEvent) => event.preventDefault()}
        @drop=${(event: DragEvent) => {
          event.preventDefault();
          event.stopPropagation();
          take(event.dataTransfer?.files[0]);
        }}><label for=${`drawer-${name}`}>${label} <span class="quiet-text">${width ? `${width} wide` : "any width"}</span></label>
      ${
        matrix && !isShort(matrix)
          ? html`<p class="file" id=${`drawer-${name}`}>${matrix.rows} × ${matrix.columns} numbers
              <button type="button" class="quiet" @click=${() => change({ [name]: null })}>clear</button></p>`
          : html`<textarea id=${`drawer-${name}`} rows="5" spellcheck="false" class="code" placeholder="[[1, 0], [0, 1]]"
              .value=${matrix ? writeMatrix(matrix) : ""} @change=${typed}></textarea>`
      }
      <label class="choose">choose or drop .npy, .json, .csv<input type="file" accept=".npy,.json,.csv,.tsv,.txt" aria-label=${`${label} from a file`}
        @change=${(event: Event) => {
          const chosen = event.target as HTMLInputElement;
          take(chosen.files?.[0]);
          chosen.value = "";
        }}></label></div>`;
  }
}

function pair(model: Model, input: Input, change: (changes: Partial<Input>) => void): TemplateResult | typeof nothing {
  if (!model.manifest.text?.takes_pairs) return nothing;
  return html`<label class="check"><input type="checkbox" .checked=${input.pair !== null}
    @change=${() => change({ pair: input.pair === null ? "" : null })}> a second text, as a pair</label>`;
}

function ids(input: Input, change: (changes: Partial<Input>) => void): TemplateResult {
  const read = (event: Event) => {
    const text = (event.target as HTMLTextAreaElement).value;
    change({ ids: (text.match(/\d+/g) ?? []).map(Number) });
  };
  return html`<div class="field"><label for="drawer-ids">Token ids, special tokens included</label>
    <textarea id="drawer-ids" rows="3" class="code" spellcheck="false" .value=${input.ids.join(" ")} @change=${read}></textarea></div>`;
}

const CAUSAL: [Causal, string][] = [
  ["none", "all is seen"],
  ["top_left", "hide the future, first positions aligned"],
  ["bottom_right", "hide the future, last positions aligned"],
];

function mask(input: Input, change: (changes: Partial<Input>) => void): TemplateResult {
  const value = (event: Event) => (event.target as HTMLInputElement).value;
  const side = (event: Event) => (value(event) === "" ? -1 : Math.max(0, Math.trunc(Number(value(event)))));
  return html`<section><h3>Mask</h3>
    <div class="field"><label for="drawer-causal">Causal</label>
      <select id="drawer-causal" @change=${(event: Event) => change({ causal: value(event) as Causal })}>
        ${CAUSAL.map(([each, label]) => html`<option value=${each} ?selected=${input.causal === each}>${label}</option>`)}</select></div>
    <div class="pair">${(["left", "right"] as const).map(
      (each) => html`<div class="field"><label for=${`drawer-${each}`}>Window, ${each}</label>
        <input id=${`drawer-${each}`} type="number" min="0" step="1" placeholder="all" .value=${input[each] < 0 ? "" : String(input[each])}
          @change=${(event: Event) => change({ [each]: side(event) })}></div>`,
    )}</div></section>`;
}

/** Leaves the bytes of vectors out of the JSON that is shown. */
function shortened(_: string, value: unknown): unknown {
  return typeof value === "string" && value.length > 400 ? `${value.slice(0, 40)}…` : value;
}
