// What is known is not asked again: answers by their question.
import { type Api, ApiError, type Model, type OutputSpec, type Result } from "./api.ts";

const MOST = 48; // answers kept

export class Known {
  private readonly kept = new Map<string, Promise<Result>>();

  constructor(private readonly api: Api) {}

  /** As `Api.attend`, from what is known where it is. */
  attend(model: Model, sequence: object, outputs: (OutputSpec | string)[], signal?: AbortSignal): Promise<Result> {
    const question = JSON.stringify([model.name, model.version, sequence, outputs]);
    const known = this.kept.get(question);
    if (known) return known;
    const answer = this.api.attend(model, sequence, outputs, signal);
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
