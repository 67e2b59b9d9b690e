// The link that brings a state back.
import type { Model } from "../api/api.ts";
import { isShort, type Matrix, readJson, writeMatrix } from "../api/matrix.ts";
import { example } from "./examples.ts";
import { begin, type Causal, type Input, SORTS, type State, TABS, TRACKS, VIEWS } from "./state.ts";

const VECTORS = ["query", "key", "value"] as const;
type Put = (name: string, value: unknown, usual: unknown) => void;

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
  const put: Put = (name, value, usual) => {
    if (value !== usual) params.set(name, String(value));
  };
  put("view", state.view, "meet");
  putInput(put, "", state.a);
  if (state.b) putInput(put, "b.", state.b);
  put("layer", state.layer, "");
  put("track", state.track, "qkv");
  put("step", state.step, 0);
  put("exact", state.exact, false);
  put("head", state.head, 0);
  put("query", state.query ?? "", "");
  put("tab", state.tab, "heads");
  put("sort", state.sort, "model");
  put("badge", state.badge, "");
  put("find", state.find, "");
  put("special", state.special, true);
  put("beside", state.beside, "");
  put("style", state.style, null);
  put("heads", state.heads.join("."), "");
  put("mean", state.mean, true);
  put("lock", state.lock ? [state.lock.query, ...(state.lock.key === null ? [] : [state.lock.key])].join(".") : "", "");
  put("sides", state.sides?.join(",") ?? "", "");
  put("said", state.said, 0);
  put("written", state.written ?? "", "");
  put("read", state.read, "");
  put("draw", state.draw, 0);
  put("seed", state.seed, 0);
  return params.toString();
}

function putInput(put: Put, prefix: string, input: Input): void {
  put(`${prefix}model`, input.model, undefined);
  if (input.kind === "text") {
    put(`${prefix}text`, input.text, undefined);
    put(`${prefix}pair`, input.pair, null);
    put(`${prefix}memory`, input.memoryText, "");
  } else if (input.kind === "ids") {
    put(`${prefix}ids`, input.ids.join("."), undefined);
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
  put(`${prefix}hide`, input.hidden.join("."), "");
  put(`${prefix}off`, input.off.join(","), "");
  put(`${prefix}temperature`, input.temperature, 1);
}

/** Reads a link; what is missing or wrong is as at the beginning. */
export function fromHash(hash: string, models: Model[]): State {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const first = models.find(({ manifest }) => manifest.block === "multi_head" && manifest.training) ?? models[0];
  const a = readInput(params, "", models, first) ?? example(first);
  const state = begin(models.find(({ name }) => name === a.model)!);
  const lock = integers(params.get("lock"));
  const one = <T extends string>(list: readonly T[], name: string, otherwise: T) =>
    list.find((each) => each === params.get(name)) ?? otherwise;
  const sides = (params.get("sides") ?? "").split(",").map(Number);
  return {
    ...state,
    // The view of heads of links from before is the atlas of one layer.
    view: params.get("view") === "heads" ? "atlas" : one(VIEWS, "view", state.view),
    tab: params.get("view") === "heads" ? "layer" : one(TABS, "tab", state.tab),
    a,
    b: readInput(params, "b.", models, null),
    layer: params.get("layer") ?? "",
    track: one(TRACKS, "track", state.track),
    step: integer(params.get("step"), 0),
    exact: params.get("exact") === "true",
    head: integer(params.get("head"), 0),
    query: params.has("query") ? integer(params.get("query"), 0) : null,
    sort: one(SORTS, "sort", state.sort),
    badge: params.get("badge") ?? "",
    find: params.get("find") ?? "",
    special: params.get("special") !== "false",
    beside: params.get("beside") ?? "",
    style: (["lines", "matrix"] as const).find((each) => each === params.get("style")) ?? null,
    heads: integers(params.get("heads")),
    mean: params.get("mean") !== "false",
    lock: lock.length ? { query: lock[0], key: lock[1] ?? null } : null,
    sides: sides.length === 2 && sides.every(Number.isInteger) ? [sides[0], sides[1]] : null,
    said: integer(params.get("said"), 0),
    written: params.has("written") ? integer(params.get("written"), 0) : null,
    read: params.get("read") ?? "",
    draw: positive(params.get("draw"), 0),
    seed: integer(params.get("seed"), 0),
  };
}

function readInput(params: URLSearchParams, prefix: string, models: Model[], otherwise: Model | null): Input | null {
  const name = params.get(`${prefix}model`);
  const model = models.find((each) => each.name === name) ?? otherwise;
  if (!model || (name === null && !otherwise)) return null;
  const input = example(model);
  const get = (field: string) => params.get(`${prefix}${field}`);
  const vectors = VECTORS.map((each) => [each, get(`${each}-vectors`)] as const);
  if (get("text") !== null || get("memory") !== null) {
    input.kind = "text";
    input.text = get("text") ?? "";
    input.pair = get("pair");
    input.memoryText = get("memory") ?? "";
  }
  if (get("ids") !== null) {
    input.kind = "ids";
    input.ids = integers(get("ids"));
  } else if (vectors.some(([, text]) => text !== null)) {
    input.kind = "vectors";
    for (const [each, text] of vectors) input[each] = text === null ? null : readOr(text);
  }
  const causal = get("causal");
  if (causal === "top_left" || causal === "bottom_right") input.causal = causal satisfies Causal;
  input.left = integer(get("left"), -1);
  input.right = integer(get("right"), -1);
  input.hidden = integers(get("hide"));
  input.off = (get("off") ?? "").split(",").filter((each) => /\.\d+$/.test(each));
  input.temperature = positive(get("temperature"), 1);
  return input;
}

function readOr(text: string): Matrix | null {
  try {
    return readJson(text);
  } catch {
    return null;
  }
}

function positive(text: string | null, otherwise: number): number {
  const value = Number(text ?? "");
  return value > 0 && Number.isFinite(value) ? value : otherwise;
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
