// The state of the page, and the link that brings it back.

import type { Model } from "./api.ts";
import type { Causal, Input } from "./ask.ts";
import type { Place, Style } from "./drawing.ts";
import { isShort, type Matrix, readJson, writeMatrix } from "./matrix.ts";

export const VIEWS = ["steps", "heads", "translate", "compare"] as const;
export type View = (typeof VIEWS)[number];

export interface State {
  view: View;
  a: Input;
  /** What `a` is compared with. */
  b: Input | null;
  layer: string;
  /** Of the steps. */
  step: number;
  head: number;
  query: number | null;
  /** Of the heads; see HeadsState. */
  style: Style;
  heads: number[];
  mean: boolean;
  lock: Place | null;
}

const VECTORS = ["query", "key", "value"] as const;

/** Something to begin with: a sentence that the model was trained for, or a few small vectors. */
export function example(model: Model): Input {
  const { text, training, layers } = model.manifest;
  const examples: Record<string, [string, string]> = {
    roles: ["I gave my cat Tater a toy", ""],
    retrieval: ["cat=3 dog=7 cow=1 dog=?", ""],
    numbers: ["ein und", "twenty one"],
  };
  const [own, memory] = examples[training?.task ?? ""] ?? [text?.allow_unknown ? "I gave my cat Tater a toy" : "", ""];
  const cross = model.manifest.block === "cross_attention";
  const [layer] = layers;
  const vectors = text ? null : drawn(4, layer.query_dim || 3, 1);
  return {
    model: model.name,
    kind: text ? "text" : "vectors",
    text: own,
    memoryText: memory,
    query: vectors,
    key: vectors && cross ? drawn(6, layer.key_dim || layer.query_dim || 3, 2) : null,
    value:
      vectors && cross && layer.value_dim && layer.value_dim !== layer.key_dim ? drawn(6, layer.value_dim, 3) : null,
    causal: "none",
    left: -1,
    right: -1,
  };
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

/** What of the state a link leaves out, since it is too large; empty when nothing. */
export function leftOut(state: State): string[] {
  const inputs: [string, Input | null][] = [
    ["", state.a],
    ["second ", state.b],
  ];
  return inputs.flatMap(([which, input]) =>
    input?.kind === "vectors"
      ? VECTORS.flatMap((name) => {
          const matrix = input[name];
          return matrix && !isShort(matrix) ? [`${which}${name} (${matrix.rows} × ${matrix.columns} numbers)`] : [];
        })
      : [],
  );
}

export function toHash(state: State): string {
  const params = new URLSearchParams();
  const put = (name: string, value: unknown, usual: unknown) => {
    if (value !== usual) params.set(name, String(value));
  };
  put("view", state.view, "steps");
  putInput(put, "", state.a);
  if (state.b) putInput(put, "b.", state.b);
  put("layer", state.layer, "");
  put("step", state.step, 0);
  put("head", state.head, 0);
  put("query", state.query ?? "", "");
  put("style", state.style, "matrix");
  put("heads", state.heads.join("."), "");
  put("mean", state.mean, true);
  put("lock", state.lock ? [state.lock.query, ...(state.lock.key === null ? [] : [state.lock.key])].join(".") : "", "");
  return params.toString();
}

function putInput(put: (name: string, value: unknown, usual: unknown) => void, prefix: string, input: Input): void {
  put(`${prefix}model`, input.model, undefined);
  if (input.kind === "text") {
    put(`${prefix}text`, input.text, undefined);
    put(`${prefix}memory`, input.memoryText, "");
  } else {
    for (const name of VECTORS) {
      const matrix = input[name];
      if (matrix && isShort(matrix))
        put(`${prefix}${name}-vectors`, writeMatrix(matrix).replaceAll(/\s/g, ""), undefined);
    }
  }
  put(`${prefix}causal`, input.causal, "none");
  put(`${prefix}left`, input.left, -1);
  put(`${prefix}right`, input.right, -1);
}

/** Reads a link; what is missing or wrong is as at the beginning. */
export function fromHash(hash: string, models: Model[]): State {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const view = VIEWS.find((each) => each === params.get("view")) ?? "steps";
  const first = models.find(({ manifest }) => manifest.block === "multi_head" && manifest.training) ?? models[0];
  const a = readInput(params, "", models, first) ?? example(first);
  const lock = integers(params.get("lock"));
  return {
    view,
    a,
    b: readInput(params, "b.", models, null),
    layer: params.get("layer") ?? "",
    step: integer(params.get("step"), 0),
    head: integer(params.get("head"), 0),
    query: params.has("query") ? integer(params.get("query"), 0) : null,
    style: params.get("style") === "lines" ? "lines" : "matrix",
    heads: integers(params.get("heads")),
    mean: params.get("mean") !== "false",
    lock: lock.length ? { query: lock[0], key: lock[1] ?? null } : null,
  };
}

function readInput(params: URLSearchParams, prefix: string, models: Model[], otherwise: Model | null): Input | null {
  const name = params.get(`${prefix}model`);
  const model = models.find((each) => each.name === name) ?? otherwise;
  if (!model || (name === null && !otherwise)) return null;
  const input = example(model);
  const vectors = VECTORS.map((each) => [each, params.get(`${prefix}${each}-vectors`)] as const);
  if (params.has(`${prefix}text`)) {
    input.kind = "text";
    input.text = params.get(`${prefix}text`) ?? "";
    input.memoryText = params.get(`${prefix}memory`) ?? "";
  } else if (vectors.some(([, text]) => text !== null)) {
    input.kind = "vectors";
    for (const [each, text] of vectors) input[each] = text === null ? null : readOr(text);
  }
  const causal = params.get(`${prefix}causal`);
  if (causal === "top_left" || causal === "bottom_right") input.causal = causal satisfies Causal;
  input.left = integer(params.get(`${prefix}left`), -1);
  input.right = integer(params.get(`${prefix}right`), -1);
  return input;
}

function readOr(text: string): Matrix | null {
  try {
    return readJson(text);
  } catch {
    return null;
  }
}

function integer(text: string | null, otherwise: number): number {
  const value = Number(text ?? "");
  return text && Number.isInteger(value) && value >= 0 ? value : otherwise;
}

function integers(text: string | null): number[] {
  return (text ?? "")
    .split(".")
    .filter(Boolean)
    .map(Number)
    .filter((each) => Number.isInteger(each) && each >= 0);
}
