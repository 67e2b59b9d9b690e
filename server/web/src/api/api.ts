// The server that this page came from, by the TypeScript client.
import {
  type AttendOne,
  AttentionClient,
  AttentionError,
  type Memory,
  type MemoryRequest,
  type Model,
  type OutputSpec,
  type Result,
  type TokenizeRequest,
  type Tokenization as Tokens,
} from "../../../../client/typescript/attention.ts";

export type {
  Candidate,
  Example as ManifestExample,
  Layer,
  Memory,
  Model,
  OutputSpec,
  Result,
  Span as Place,
  Tensor,
  Tokenization as Tokens,
  TokenizeRequest,
  TopK,
} from "../../../../client/typescript/attention.ts";
export { AttentionError as ApiError, tensor as encode } from "../../../../client/typescript/attention.ts";

/** Whether a sequence of the model attends to another one, which has to be given. */
export function isCross({ manifest }: Model): boolean {
  return manifest.block === "cross_attention" || manifest.layers.some(({ side }) => side === "SIDE_CROSS");
}

const TOKEN = "attention.token";

export class Api {
  private readonly client = new AttentionClient({
    token: () => sessionStorage.getItem(TOKEN),
    timeout: 0,
    retries: 0, // the page shows why it waits, and asks again itself
  });

  /** @param askToken shows a field for a bearer token and gives what was typed */
  constructor(private readonly askToken: () => Promise<string>) {}

  models(): Promise<Model[]> {
    return this.withToken(() => this.client.models());
  }

  /** One sequence's attention. */
  attend(model: Model, sequence: object, outputs: (OutputSpec | string)[], signal?: AbortSignal): Promise<Result> {
    const { name, version } = model;
    return this.withToken(() => this.client.attend(name, { ...sequence, outputs } as AttendOne, { version, signal }));
  }

  /** The words that a model of a closed vocabulary reads, in a text and in a memory text; none of one that reads others. */
  words(model: Model): Promise<{ words?: string[]; memory_words?: string[] }> {
    return this.withToken(() => this.client.model(model.name));
  }

  /** The tokens of a text, special tokens included. */
  async tokenize({ name, version }: Model, request: TokenizeRequest, signal?: AbortSignal): Promise<Tokens> {
    const [tokens] = await this.withToken(() => this.client.tokenize(name, request, { version, signal }));
    return tokens;
  }

  createMemory({ name, version }: Model, memory: MemoryRequest): Promise<Memory> {
    return this.withToken(() => this.client.createMemory(name, memory, { version }));
  }

  private async withToken<Answer>(ask: () => Promise<Answer>): Promise<Answer> {
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        if (!(error instanceof AttentionError && error.status === 401)) throw error;
        sessionStorage.setItem(TOKEN, await this.askToken());
      }
    }
  }
}
