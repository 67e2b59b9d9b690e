// What is known is not asked again: answers by their question.
import {
  type Api,
  ApiError,
  type Model,
  type OutputSpec,
  type Result,
  type TokenizeRequest,
  type Tokens,
} from "./api.ts";

const MOST = 48; // answers kept

export class Known {
  private readonly kept = new Map<string, Promise<unknown>>();

  constructor(private readonly api: Api) {}

  /** As `Api.attend`, from what is known where it is. */
  attend(model: Model, sequence: object, outputs: (OutputSpec | string)[], signal?: AbortSignal): Promise<Result> {
    return this.ask([model.name, model.version, sequence, outputs], signal, () =>
      this.api.attend(model, sequence, outputs, signal),
    );
  }

  /** As `Api.tokenize`, from what is known where it is. */
  tokens(model: Model, request: TokenizeRequest, signal?: AbortSignal): Promise<Tokens> {
    return this.ask([model.name, model.version, request], signal, () => this.api.tokenize(model, request, signal));
  }

  private ask<T>(about: unknown[], signal: AbortSignal | undefined, ask: () => Promise<T>): Promise<T> {
    const question = JSON.stringify(about);
    const known = this.kept.get(question) as Promise<T> | undefined;
    if (known) return known;
    const answer = ask();
    this.kept.set(question, answer);
    const forget = () => {
      if (this.kept.get(question) === answer) this.kept.delete(question);
    };
    // A question that is given up leaves at once, so that it can be asked again.
    signal?.addEventListener("abort", forget, { once: true });
    answer.then(() => signal?.removeEventListener("abort", forget), forget);
    for (const oldest of this.kept.keys()) {
      if (this.kept.size <= MOST) break;
      this.kept.delete(oldest);
    }
    return answer;
  }
}

const PATIENCE = 3; // times
const PAUSE = 1500; // milliseconds

/** Asks again where a server was away or full, for what is asked beside the view's own question. */
export async function patiently<T>(ask: () => Promise<T>): Promise<T> {
  for (let times = 1; ; times++) {
    try {
      return await ask();
    } catch (error) {
      if (times === PATIENCE || !(error instanceof ApiError && error.retry)) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }
}
