// Calls `:attend` by the types that openapi-typescript made of the OpenAPI document; they are checked strictly.
// Usage: node call.js URL. Prints one JSON document.
import createClient from "openapi-fetch";
import type { components, paths } from "./generated.js";

declare const process: { argv: string[] };

const [, , baseUrl = ""] = process.argv;

type Tensor = components["schemas"]["Tensor"];
type Nested = number | Nested[];

/** The elements of a tensor, row-major. */
function numbers(values: Nested | undefined): number[] {
  if (values === undefined) throw new Error("the tensor has no values");
  return typeof values === "number" ? [values] : values.flatMap(numbers);
}

function tensor(output: components["schemas"]["Result"]["outputs"][string] | undefined): Tensor {
  if (output === undefined || !("shape" in output)) throw new Error("no tensor");
  return output;
}

const client = createClient<paths, "application/json">({ baseUrl });
const params = { path: { model: "dot" } };
const { data: model } = await client.GET("/v1/models/{model}", { params });
const { data, error } = await client.POST("/v1/models/{model}:attend", {
  params,
  body: {
    query: [[1, 0], [0, 1], [1, 1]],
    mask: { causal: "top_left" },
    outputs: [
      { name: "weights" },
      { name: "entropy" },
      { name: "weights", as: "top", top_k: 2, reduce: "mean" },
      { name: "weights", as: "pair", pairs: ["0.0"] },
    ],
  },
});
if (!data || !model) throw new Error(error?.error.message ?? "no answer");
const outputs = data.results[0]?.outputs ?? {};
const { weights, entropy, top, pair } = outputs;
if (!top || !("indices" in top)) throw new Error("no top k");
const text = await client.POST("/v1/models/{model}:attend", {
  params: { path: { model: "text-cross" } },
  body: {
    text: "cats and",
    memory_text: "ein und",
    outputs: [{ name: "embeddings" }, { name: "predictions", top: 2 }],
  },
});
const [result] = text.data?.results ?? [];
const [first] = result?.predictions ?? [];
const words = await client.POST("/v1/models/{model}:tokenize", {
  params: { path: { model: "text-cross" } },
  body: { inputs: [{ text: "ein und" }], memory: true },
});
const packed = await client.POST("/v1/models/{model}:attend", {
  params,
  body: { query: { shape: [3, 2], values: [1, 0, 0, 1, 1, 1] }, encoding: "base64", outputs: [{ name: "output" }] },
});
const refused = await client.POST("/v1/models/{model}:attend", { params, body: { query: [[1, 0]], key: [[1, 0, 0]] } });
const embedding = await client.POST("/v1/embeddings", { body: { input: ["a"], model: "text-cross" } });
console.log(
  JSON.stringify({
    block: model.manifest.block,
    shape: tensor(weights).shape,
    weights: numbers(tensor(weights).values),
    entropy: numbers(tensor(entropy).values),
    pair: numbers(tensor(pair).values),
    embeddings: tensor(result?.outputs.embeddings).shape,
    top: first?.top?.map(({ id, label, probability }) => [id, label, probability]),
    first: [first?.id, first?.label, first?.probability],
    indices: numbers(top.indices.values),
    output: tensor(packed.data?.results[0]?.outputs.output).data,
    tokens: words.data?.results[0]?.tokens,
    field: refused.error?.error.field,
    without_pooling: [embedding.error?.error.param, embedding.error?.error.message],
  }),
);
