// The scenarios of tests/clients by the TypeScript client, on Node and in a browser.
import { AttentionClient, AttentionError, type Tensor, tensor } from "../../../client/typescript/attention.ts";

/** Runs one scenario against the server at an address; `stopped` tells when a call is to be given up. */
export async function run(scenario: string, baseUrl: string, stopped: Promise<unknown>): Promise<object> {
  const client = new AttentionClient({ baseUrl, timeout: 60, retries: 8 });
  const query = tensor(Float32Array.from([1, 0]), [1, 2]);

  async function unary() {
    const asked = { query: [[1, 0], [0, 1], [1, 1]], outputs: ["output" as const, "weights" as const] }; // biome-ignore format: a matrix
    const { outputs } = await client.attend("dot", asked);
    return { output: [...(outputs.output as Tensor).data], shape: (outputs.weights as Tensor).shape };
  }

  async function stream() {
    const queries = Array.from({ length: 100 }, (_, id) => tensor(Float32Array.from([id, 1, 0, 1]), [2, 2]));
    const { results } = await client.attendBatch("dot", { inputs: queries.map((each) => ({ query: each })) });
    return { answers: results.map(({ outputs }, id) => [id, (outputs.output as Tensor).data[0]]) };
  }

  async function large() {
    const shape = [2, (30 * 2 ** 20) / 8];
    const ones = tensor(new Float32Array(shape[0] * shape[1]).fill(1), shape);
    const { outputs } = await client.attend("dot", { query: ones, outputs: ["output"] });
    const { data } = outputs.output as Tensor;
    return { numbers: data.length, sum: data.reduce((sum, each) => sum + each, 0) };
  }

  async function cancel() {
    const control = new AbortController();
    stopped.then(() => control.abort());
    return client.attend("dot", { query }, { timeout: 0, signal: control.signal }).catch(failure);
  }

  /** All that the client reads of answers beside these: numbers of two bytes, the top k, names and versions, lists. */
  async function rest() {
    const outputs = [
      { name: "output" as const, data_type: "FP16" as const },
      { name: "weights" as const, top_k: 1 },
    ];
    const { outputs: read } = await client.attend("dot", { query, outputs }, { version: 1 });
    const [model, models] = [await client.model("dot"), await client.models()];
    const gone = await client.model("dot", { version: 7 }).catch(failure);
    const memory = await client.createMemory("dot", { key: [[1, 0]] });
    const kept = (await client.memories("dot")).map(({ id }) => id === memory.id);
    await client.deleteMemory("dot", memory.id);
    const index = await client.call("repositoryIndex", {}, {});
    const given = await client.attend("dot", { query }, { signal: AbortSignal.abort() }).catch(failure);
    const embedding = await client.call("createEmbeddings", {}, { input: ["a"], model: "dot" }).catch(failure);
    const away = await new AttentionClient({ baseUrl: "http://127.0.0.1:9" }).models().catch(failure);
    return { read: describe(read), models: models.length, model: model.name, gone, kept, index, given, embedding, away };
  }

  const scenarios: Record<string, () => Promise<object>> = {
    unary,
    stream,
    large,
    deadline: () => client.attend("dot", { query }, { timeout: 1 }).catch(failure),
    cancel,
    errors: () => client.attend("dot", { query: tensor(Float32Array.from([1, 0]), [2]) }).catch(failure),
    retry: unary,
    rest,
  };
  return scenarios[scenario]();
}

function failure(error: unknown): object {
  if (!(error instanceof AttentionError)) return { code: (error as Error).name === "AbortError" ? "CANCELLED" : error };
  const { code, message, field, status, retry, requestId } = error;
  return { code, message, field, status, retry, named: requestId !== "" };
}

function describe(outputs: object): object {
  const show = (value: object): unknown =>
    "data" in value
      ? [value.data?.constructor.name, ...(value.data as Float32Array)]
      : Object.fromEntries(Object.entries(value).map(([name, each]) => [name, show(each)]));
  return Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, show(value)]));
}
