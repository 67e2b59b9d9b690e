// What a view is: state and answers in, changes of state out. A view keeps no state that a link should hold.
import type { Layer, Model } from "../api/api.ts";
import type { Known } from "../api/known.ts";
import type { Shown } from "../app/export.ts";
import type { Picture } from "../drawing/picture.ts";
import type { Input, State } from "../state/state.ts";

/** What a view reads, and how it asks and changes. */
export interface Context {
  readonly state: Readonly<State>;
  readonly models: readonly Model[];
  /** The model of `state.a`, and the layer of it that is looked at. */
  readonly model: Model;
  readonly layer: Layer;
  readonly known: Known;
  /** Changes the state, which loads and shows the view again; `quietly` where nothing has to be asked or drawn anew. */
  change(changes: Partial<State>, quietly?: boolean): void;
  /** Completes the state while it loads: no step in the history, and nothing is asked. */
  settle(changes: Partial<State>): void;
  /** Changes the first input, or the one it is compared with. */
  edit(changes: Partial<Input>): void;
  editOther(changes: Partial<Input>): void;
  modelOf(input: Input): Model;
}

export interface View {
  readonly element: HTMLElement;
  /**
   * Asks for all that the view shows of a state, and keeps it. What is known is not asked again.
   * Throws ApiError; what was loaded before then stays.
   */
  load(context: Context, signal: AbortSignal): Promise<void>;
  /** Draws what was loaded. It asks nothing. */
  show(context: Context): void;
  /** What a file of the view would show; null where there is nothing yet. */
  shown(): Shown | null;
  /** What a file of all heads of all layers would show, of a view that shows these. */
  allHeads?(): Shown | null;
  /** Acts on a key that nothing else took. */
  pressed?(event: KeyboardEvent, context: Context): void;
  /** The picture behind it, for files that hold numbers. */
  picture(): Picture | null;
}
