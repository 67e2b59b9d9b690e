// The public API, as REST tells it.

export interface Layer {
  name: string;
  heads: number;
  query_dim?: number;
  key_dim?: number;
  value_dim?: number;
  head_dim?: number;
  value_head_dim?: number;
  output_dim?: number;
  scale?: number;
  softcap?: number;
  zero_key?: boolean;
  causal?: boolean;
  window?: number;
  stages?: string[];
  side?: "SIDE_TARGET" | "SIDE_SOURCE" | "SIDE_CROSS";
}

/** A text to try a model with. */
export interface ManifestExample {
  text?: string;
  memory_text?: string;
  note?: string;
}

export interface Model {
  name: string;
  version: number;
  versions: number[];
  words?: string[];
  memory_words?: string[];
  manifest: {
    block: "dot_product" | "self_attention" | "multi_head" | "cross_attention" | "transformer";
    description?: string;
    architecture?: string;
    layers: Layer[];
    text?: {
      memory_front?: object;
      memory_tokenizer?: object;
      max_tokens?: number;
      allow_unknown?: boolean;
      takes_pairs?: boolean;
      start_token?: number;
      end_tokens?: number[];
    };
    predictors?: { name: string; rows: string; labels?: string[]; vocabulary?: boolean }[];
    training?: { task?: string; figures?: Record<string, number> };
    examples?: ManifestExample[];
  };
}

/** Whether a sequence of the model attends to another one, which has to be given. */
export function isCross({ manifest }: Model): boolean {
  return manifest.block === "cross_attention" || manifest.layers.some(({ side }) => side === "SIDE_CROSS");
}

/** A dense array, row-major. */
export interface Tensor {
  shape: number[];
  data: Float32Array | Uint16Array | Int32Array;
}

export interface TopK {
  indices: Tensor;
  values: Tensor;
}

export interface Candidate {
  id: number;
  label: string;
  probability: number;
}

/** Where a token stands in its text, in characters. */
export interface Place {
  start: number;
  end: number;
}

export interface Result {
  tokens?: string[];
  memory_tokens?: string[];
  token_offsets?: Place[];
  memory_token_offsets?: Place[];
  outputs: Record<string, Tensor | TopK>;
  predictions?: (Candidate & { name: string; row?: number; top?: Candidate[] })[];
  /** What a sequence was kept as, where it was to be. */
  memory?: { id: string };
}

export interface OutputSpec {
  name: string;
  as?: string;
  heads?: number[];
  rows?: number[];
  reduce?: "mean" | "max";
  fold?: "rollout";
  top_k?: number;
  layers?: string[];
  pool?: "mean" | "first" | "last";
  pairs?: string[];
  top?: number;
  sample?: { temperature: number; seed: number };
  spans?: Record<string, { begin: number; end: number }>;
}

export interface Memory {
  id: string;
  version: number;
  tokens?: string[];
}

export interface Tokens {
  token_ids: number[];
  tokens: string[];
}

/** What the server answers in place of a result. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly field: string,
  ) {
    super(message);
  }

  /** Whether the same question may be answered later: the server is away, starting, or full. */
  get passes(): boolean {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

const TOKEN = "attention.token";

/** Asks the server that this page came from. */
export class Api {
  /** @param askToken shows a field for a bearer token and gives what was typed */
  constructor(private readonly askToken: () => Promise<string>) {}

  async models(): Promise<Model[]> {
    return ((await this.json("GET", "v1/models")) as { models: Model[] }).models;
  }

  /** One sequence's attention; tensors come as bytes. */
  async attend(
    model: Model,
    sequence: object,
    outputs: (OutputSpec | string)[],
    signal?: AbortSignal,
  ): Promise<Result> {
    const path = `v1/models/${encodeURIComponent(model.name)}/versions/${model.version}:attend`;
    const body = { ...sequence, outputs, encoding: "base64" };
    const answer = (await this.json("POST", path, body, signal)) as {
      results: [Omit<Result, "outputs"> & { outputs: Record<string, Encoded | { indices: Encoded; values: Encoded }> }];
    };
    const [result] = answer.results;
    const outputsRead = Object.entries(result.outputs).map(([name, value]) => [
      name,
      "indices" in value ? { indices: decode(value.indices), values: decode(value.values) } : decode(value),
    ]);
    return { ...result, outputs: Object.fromEntries(outputsRead) };
  }

  /** The words that a model of a closed vocabulary reads, in a text and in a memory text; none of one that reads others. */
  async words(model: Model): Promise<{ words?: string[]; memory_words?: string[] }> {
    return (await this.json("GET", `v1/models/${encodeURIComponent(model.name)}`)) as Model;
  }

  /** The tokens of a text, special tokens included. */
  async tokenize(model: Model, text: string, pair: string | null = null): Promise<Tokens> {
    const path = `v1/models/${encodeURIComponent(model.name)}/versions/${model.version}:tokenize`;
    const body = { text, ...(pair === null ? {} : { text_pair: pair }) };
    const { results } = (await this.json("POST", path, body)) as { results: [Tokens] };
    return results[0];
  }

  async createMemory(model: Model, memory: object): Promise<Memory> {
    const path = `v1/models/${encodeURIComponent(model.name)}/memories`;
    return (await this.json("POST", path, { ...memory, version: model.version })) as Memory;
  }

  private async json(method: string, path: string, body?: object, signal?: AbortSignal): Promise<unknown> {
    const response = await this.send(method, path, body, signal);
    if (response.status === 401) {
      sessionStorage.setItem(TOKEN, await this.askToken());
      return this.json(method, path, body, signal);
    }
    const content = await response.json().catch(() => null);
    if (!response.ok) {
      const { message, field } = content?.error ?? {};
      throw new ApiError(message ?? `the server answered ${response.status}`, response.status, field ?? "");
    }
    return content;
  }

  private async send(method: string, path: string, body?: object, signal?: AbortSignal): Promise<Response> {
    const token = sessionStorage.getItem(TOKEN);
    const headers: Record<string, string> = token ? { authorization: `Bearer ${token}` } : {};
    if (body) headers["content-type"] = "application/json";
    try {
      return await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError("the server cannot be reached", 0, "");
    }
  }
}

interface Encoded {
  data_type: string;
  shape: number[];
  data: string;
}

function decode({ data_type, shape, data }: Encoded): Tensor {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0)).buffer;
  const kinds = { FP32: Float32Array, UINT16: Uint16Array, INT32: Int32Array };
  const Kind = kinds[data_type as keyof typeof kinds];
  return { shape, data: new Kind(bytes) };
}

/** Writes vectors [T, D] as a tensor of the wire. */
export function encode(data: Float32Array, shape: number[]): object {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return { data_type: "FP32", shape, data: btoa(text) };
}
