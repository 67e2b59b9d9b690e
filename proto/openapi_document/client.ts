// A client of Attention Service over REST, in one file without dependencies, for browsers and Node from version 20.
//
//   const client = new AttentionClient({ baseUrl: "http://127.0.0.1:8080" });
//   const { tokens, outputs } = await client.attend("multi-head", { text: "I gave my cat a toy", outputs: ["weights"] });
//   const { shape, data } = outputs.weights as Tensor; // [H, T, S], and a Float32Array, row-major

/** A dense array, row-major. */
export interface Tensor<Data = Float32Array> {
  shape: number[];
  data: Data;
}

/** The k largest numbers of each row, [..., k]: where they are, and what. */
export interface TopK {
  indices: Tensor<Uint16Array | Int32Array>;
  values: Tensor;
}

/** Why a call failed. */
export class AttentionError extends Error {
  /** The HTTP status; 0 where no answer came. */
  readonly status: number;
  /** The name of the cause, such as INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, DEADLINE_EXCEEDED. */
  readonly code: string;
  /** The path of the field at fault, such as `inputs[0].text`; empty for none. */
  readonly field: string;
  /** The request's id in the server's log; empty where no answer came. */
  readonly requestId: string;
  /** The seconds after which the server asks to be called again; null where it names none. */
  readonly retryAfter: number | null;

  constructor(message: string, status = 0, code = "UNAVAILABLE", field = "", requestId = "", retryAfter?: number) {
    super(message);
    this.name = "AttentionError";
    this.status = status;
    this.code = code;
    this.field = field;
    this.requestId = requestId;
    this.retryAfter = retryAfter ?? null;
  }

  /** Whether the same call may be answered later: the server is away, starting, or full. */
  get retry(): boolean {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

export interface ClientOptions {
  /** The server's address; the page's own folder when empty. */
  baseUrl?: string;
  /** A bearer token, or what gives it for each request; null for none. */
  token?: string | (() => string | null);
  /** Seconds within which a call has to be answered, its repetitions included; 0 for any time. 30 when absent. */
  timeout?: number;
  /** How often a call is repeated that is answered by 429 or 503. 4 when absent. */
  retries?: number;
}

export interface CallOptions {
  /** Gives the call up. It then fails with the signal's reason. */
  signal?: AbortSignal;
  /** Seconds, in place of the client's. */
  timeout?: number;
  /** The model's version; its default when absent. */
  version?: number;
}

type Outputs = { outputs?: (OutputSpec | OutputName)[] };
type Chosen = "model" | "version" | "encoding" | "outputs";
/** One sequence, and what is asked of it. */
export type AttendOne = Omit<AttendRequest, Chosen | "inputs"> & Outputs;
/** Several sequences, of any lengths, in one request. */
export type AttendSeveral = Omit<AttendRequest, Chosen | keyof Sequence> & Outputs & { inputs: Sequence[] };

export class AttentionClient {
  private readonly base: string;
  private readonly options: ClientOptions;

  constructor(options: ClientOptions = {}) {
    this.options = options;
    this.base = options.baseUrl ? options.baseUrl.replace(/\/*$/, "/") : "";
  }

  /** Attends from each position of one sequence. */
  async attend(model: string, request: AttendOne, options: CallOptions = {}): Promise<Result> {
    const { results } = await this.attendWith(model, request, options);
    return results[0];
  }

  /** Attends over several sequences; the results are in their order. */
  attendBatch(model: string, request: AttendSeveral, options: CallOptions = {}): Promise<AttendResponse> {
    return this.attendWith(model, request, options);
  }

  /** The tokens of texts, as a model reads them. */
  async tokenize(model: string, request: TokenizeRequest, options: CallOptions = {}): Promise<Tokenization[]> {
    const { version } = options;
    const { results } = version
      ? await this.call("tokenizeVersion", { model, version }, request, options)
      : await this.call("tokenize", { model }, request, options);
    return results;
  }

  /** The served models, each at its default version. */
  async models(options: CallOptions = {}): Promise<Model[]> {
    return (await this.call("listModels", {}, undefined, options)).models;
  }

  /** One model with its manifest. */
  model(model: string, options: CallOptions = {}): Promise<Model> {
    const { version } = options;
    return version
      ? this.call("getModelVersion", { model, version }, undefined, options)
      : this.call("getModel", { model }, undefined, options);
  }

  /** Keeps a source or a prefix on the server; its `id` is the `memory` of later sequences. */
  createMemory(model: string, request: MemoryRequest, options: CallOptions = {}): Promise<Memory> {
    return this.call("createMemory", { model }, { version: options.version, ...request }, options);
  }

  async memories(model: string, options: CallOptions = {}): Promise<Memory[]> {
    return (await this.call("listMemories", { model }, undefined, options)).memories;
  }

  async deleteMemory(model: string, id: string, options: CallOptions = {}): Promise<void> {
    await this.call("deleteMemory", { model, id }, undefined, options);
  }

  /** Calls any operation of the REST API by its name in the OpenAPI document. */
  async call<Name extends keyof Operations>(
    name: Name,
    path: Operations[Name]["path"],
    body: Operations[Name]["body"],
    options: CallOptions = {},
  ): Promise<Operations[Name]["answer"]> {
    const [method, route] = ROUTES[name];
    const given = path as Record<string, string | number>;
    const isAttend = name === "attend" || name === "attendVersion";
    const asked = isAttend ? { ...(body as object), encoding: "base64" } : body;
    const url = this.base + route.replace(/\{(\w+)\}/g, (_, part: string) => encodeURIComponent(given[part]));
    const timeout = options.timeout ?? this.options.timeout ?? 30;
    const end = timeout > 0 ? performance.now() + 1000 * timeout : Number.POSITIVE_INFINITY;
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await this.send(method, url, asked, end, options.signal);
        return isAttend ? { ...answer, results: answer.results.map(decodeResult) } : answer;
      } catch (error) {
        if (!(error instanceof AttentionError && [429, 503].includes(error.status))) throw error;
        const seconds = error.retryAfter ?? 0.25 * 2 ** attempt * (0.75 + Math.random() / 2);
        if (attempt >= (this.options.retries ?? 4) || performance.now() + 1000 * seconds >= end) throw error;
        await pause(1000 * seconds, options.signal);
      }
    }
  }

  private attendWith(model: string, request: object, options: CallOptions): Promise<AttendResponse> {
    const { version } = options;
    const body = request as AttendRequest; // an output may be a name alone, which the document's type leaves out
    return version
      ? this.call("attendVersion", { model, version }, body, options)
      : this.call("attend", { model }, body, options);
  }

  private async send(method: string, url: string, body: unknown, end: number, signal?: AbortSignal) {
    const { token } = this.options;
    const bearer = typeof token === "function" ? token() : token;
    const headers: Record<string, string> = bearer ? { authorization: `Bearer ${bearer}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    const left = end - performance.now();
    if (Number.isFinite(left)) headers["x-request-timeout"] = (Math.max(left, 1) / 1000).toFixed(3);
    const control = new AbortController();
    const giveUp = () => control.abort(signal?.reason);
    const late = new AttentionError("no answer in time", 504, "DEADLINE_EXCEEDED");
    const timer = Number.isFinite(left) ? setTimeout(() => control.abort(late), left) : undefined;
    signal?.addEventListener("abort", giveUp);
    if (signal?.aborted) giveUp();
    try {
      const sent = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
      const response = await fetch(url, { ...sent, signal: control.signal });
      const text = await response.text();
      if (!response.ok) throw refusal(response, text);
      return JSON.parse(text);
    } catch (error) {
      if (control.signal.aborted) throw control.signal.reason;
      throw error instanceof AttentionError ? error : new AttentionError("the server cannot be reached");
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", giveUp);
    }
  }
}

/** Writes numbers as a tensor of a request, such as `query: tensor(data, [T, width])`. */
export function tensor(data: Float32Array, shape: number[]): InputTensor {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return { data_type: "FP32", shape, data: btoa(text) };
}

/** Reads the error document of any of the server's protocols. */
function refusal(response: Response, text: string): AttentionError {
  let error: unknown;
  try {
    error = JSON.parse(text).error;
  } catch {} // of a proxy
  const told = (typeof error === "string" ? { message: error } : (error ?? {})) as Partial<ErrorDetail & OpenAIError>;
  const { message = `the server answered ${response.status}`, status, field, param, request_id } = told;
  const seconds = Number.parseFloat(response.headers.get("retry-after") ?? "");
  const id = request_id ?? response.headers.get("x-request-id") ?? "";
  const after = Number.isNaN(seconds) ? undefined : seconds;
  return new AttentionError(message, response.status, status ?? "", field ?? param ?? "", id, after);
}

function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const giveUp = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", giveUp);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", giveUp, { once: true });
    if (signal?.aborted) giveUp();
  });
}

interface Encoded {
  data_type: DataType;
  shape: number[];
  data: string;
}

function decodeResult(result: Result): Result {
  const outputs = Object.entries(result.outputs).map(([name, value]) => [name, decodeOutput(value)]);
  return { ...result, outputs: Object.fromEntries(outputs) };
}

function decodeOutput(value: object): Tensor | TopK | Alignment {
  if ("indices" in value && "values" in value)
    return { indices: decode(value.indices as Encoded), values: decode(value.values as Encoded) } as TopK;
  return "links" in value ? (value as Alignment) : (decode(value as Encoded) as Tensor);
}

function decode({ data_type, shape, data }: Encoded): Tensor<Float32Array | Uint16Array | Int32Array> {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  if (data_type === "FP16") return { shape, data: Float32Array.from(new Uint16Array(bytes.buffer), half) };
  const kinds = { FP32: Float32Array, UINT16: Uint16Array, INT32: Int32Array };
  return { shape, data: new kinds[data_type as keyof typeof kinds](bytes.buffer) };
}

/** The number that 16 bits stand for: a sign, 5 bits of an exponent, 10 of a fraction. */
function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

// --- What follows is made of the OpenAPI document. ---
