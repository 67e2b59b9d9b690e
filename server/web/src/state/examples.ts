// Something to begin with: a sentence that the model was trained for, or a few small vectors.
import { isCross, type ManifestExample, type Model } from "../api/api.ts";
import type { Matrix } from "../api/matrix.ts";
import type { Input } from "./state.ts";

export interface Example {
  text: string;
  memoryText: string;
  note: string;
}

const FREE = ["The animal didn't cross the street because it was too tired", "I gave my cat Tater a toy"];

/** Sentences to try: the manifest's own, else some that any model of any words reads. */
export function examples({ manifest }: Model): Example[] {
  const own = manifest.examples ?? [];
  const free = manifest.text?.allow_unknown || manifest.block === "transformer" ? FREE.map((text) => ({ text })) : [];
  return (own.length ? own : free).map(({ text = "", memory_text = "", note = "" }: ManifestExample) => ({
    text,
    memoryText: memory_text,
    note,
  }));
}

export function example(model: Model): Input {
  const { text } = model.manifest;
  const [first] = examples(model);
  return {
    model: model.name,
    kind: text ? "text" : "vectors",
    text: first?.text ?? "",
    pair: null,
    memoryText: first?.memoryText ?? "",
    ids: [],
    ...(text ? { query: null, key: null, value: null } : someVectors(model)),
    causal: "none",
    left: -1,
    right: -1,
    hidden: [],
    off: [],
    temperature: 1,
  };
}

/** A text for a model that translates. */
export function translated(model: Model): Input {
  const given = examples(model).find(({ text, memoryText }) => memoryText && !text);
  return { ...example(model), ...(given ? { text: given.text, memoryText: given.memoryText } : {}) };
}

/** A few small vectors of the widths that a model takes. */
export function someVectors(model: Model): Pick<Input, "query" | "key" | "value"> {
  const [layer] = model.manifest.layers;
  const width = layer.query_dim || 3;
  const cross = model.manifest.block === "cross_attention";
  const wide = layer.value_dim && layer.value_dim !== layer.key_dim;
  return {
    query: drawn(4, width, 1),
    key: cross ? drawn(6, layer.key_dim || width, 2) : null,
    value: cross && wide ? drawn(6, layer.value_dim!, 3) : null,
  };
}

/** The input for another model: the sentence stays, unless it was an example of the model before. */
export function carried(input: Input, from: Model, to: Model): Input {
  const fresh = example(to);
  if (fresh.kind !== "text" || input.kind !== "text") return fresh;
  const untouched = examples(from).some(
    ({ text, memoryText }) => text === input.text && memoryText === input.memoryText,
  );
  const known = examples(to).some(({ text }) => text === input.text);
  if (untouched && !known && fresh.text + fresh.memoryText) return fresh;
  return { ...fresh, text: input.text, memoryText: isCross(to) ? input.memoryText || fresh.memoryText : "" };
}

/** Small numbers, the same each time. */
function drawn(rows: number, columns: number, seed: number): Matrix {
  let last = seed;
  const next = () => {
    last = (last * 16807) % 2147483647;
    return Math.round((last / 2147483647 - 0.5) * 40) / 10;
  };
  for (let i = 0; i < 8; i++) next();
  return { rows, columns, data: Float32Array.from({ length: rows * columns }, next) };
}
