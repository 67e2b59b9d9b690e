// The state of the page: plain data, all of which a link holds but long vectors.
import type { Model } from "../api/api.ts";
import type { Matrix } from "../api/matrix.ts";
import type { Place, Style } from "../drawing/drawing.ts";
import { example } from "./examples.ts";

export const VIEWS = ["meet", "steps", "atlas", "translate", "generate", "compare"] as const;
export type View = (typeof VIEWS)[number];

export type Causal = "none" | "top_left" | "bottom_right";

/** One sequence, the model that reads it, and what was changed in it. */
export interface Input {
  model: string;
  kind: "text" | "ids" | "vectors";
  text: string;
  /** The second text of a pair; null for a text alone. */
  pair: string | null;
  memoryText: string;
  ids: number[];
  query: Matrix | null;
  key: Matrix | null;
  value: Matrix | null;
  causal: Causal;
  /** Of the window, -1 is unbounded. */
  left: number;
  right: number;
  /** Positions of keys that no query may attend to. */
  hidden: number[];
  /** Heads that are switched off, as "layer.head". */
  off: string[];
  /** What scores are divided by before the softmax. */
  temperature: number;
}

export interface State {
  view: View;
  a: Input;
  /** What `a` is compared with. */
  b: Input | null;
  /** The name of a layer; empty for the last. */
  layer: string;
  head: number;
  query: number | null;
  /** Of the steps: the track, its screen, and whether numbers stand in all digits. */
  track: Track;
  step: number;
  exact: boolean;
  /** Of the atlas: what is seen, the order and the choice of its heads, and what stands beside the head looked at. */
  tab: Tab;
  sort: Sort;
  badge: string;
  find: string;
  special: boolean;
  beside: string;
  /** Of the drawings of heads, see HeadsState; null where the view chooses. */
  style: Style | null;
  heads: number[];
  mean: boolean;
  lock: Place | null;
  /** Of the two sides of a comparison; -1 is the mean over heads. */
  sides: [number, number] | null;
  /** How many words a translation has said, or tokens a generation has written. */
  said: number;
  /** Of a generation: the token that was written whose row is shown, null for the last; of which heads, see ReadBy. */
  written: number | null;
  read: string;
  /** How its tokens are chosen: the most probable where the temperature is 0, else drawn. */
  draw: number;
  seed: number;
}

export const TRACKS = ["qkv", "heads", "two", "stages"] as const;
export type Track = (typeof TRACKS)[number];
export const TABS = ["heads", "layer", "rollout"] as const;
export type Tab = (typeof TABS)[number];
export const SORTS = ["model", "search", "broad", "narrow"] as const;
export type Sort = (typeof SORTS)[number];

/** The state at the beginning, of a model. */
export function begin(model: Model): State {
  return {
    view: "meet",
    a: example(model),
    b: null,
    ...UNCHOSEN,
    track: "qkv",
    step: 0,
    exact: false,
    tab: "heads",
    sort: "model",
    badge: "",
    find: "",
    special: true,
    style: null,
    mean: true,
    draw: 0,
    seed: 0,
  };
}

/** What belongs to one model and its sentence, and is chosen anew for another. */
export const UNCHOSEN = {
  layer: "",
  head: 0,
  query: null,
  beside: "",
  heads: [] as number[],
  lock: null,
  sides: null,
  said: 0,
  written: null,
  read: "",
};

/** Whether something was changed whose effect can be seen. */
export function isChanged({ hidden, off, temperature }: Input): boolean {
  return hidden.length > 0 || off.length > 0 || temperature !== 1;
}

/** The input as it was before anything was changed. */
export function unchanged(input: Input): Input {
  return isChanged(input) ? { ...input, hidden: [], off: [], temperature: 1 } : input;
}

/** Whether two inputs have the same positions, whatever was changed in them. */
export function isSameSequence(one: Input, other: Input): boolean {
  const fields = ["kind", "text", "pair", "memoryText", "query", "key"] as const;
  return fields.every((each) => one[each] === other[each]) && one.ids.join() === other.ids.join();
}

/** A list with a member that it had not, or without one that it had. */
export function toggled<T>(list: T[], member: T): T[] {
  return list.includes(member) ? list.filter((each) => each !== member) : [...list, member].sort();
}
