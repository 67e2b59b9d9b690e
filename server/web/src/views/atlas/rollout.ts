// Attention rollout: what a position has read through the layers (Abnar and Zuidema, 2020).
import { range, Weights } from "../../drawing/weights.ts";

/**
 * The product over layers of (A + I) / 2, A the mean over heads: [1, layers, S] for one position, a row after each layer.
 * The weights are whole, and queries and keys are one sequence.
 */
export function rollout(layers: Weights[], query: number): Weights {
  const size = layers[0].queries;
  let read = identity(size);
  const rows = new Float32Array(layers.length * size);
  layers.forEach((weights, at) => {
    read = multiplied(half(weights), read, size);
    rows.set(read.subarray(query * size, (query + 1) * size), at * size);
  });
  return Weights.whole([1, layers.length, size], rows);
}

function identity(size: number): Float64Array {
  const found = new Float64Array(size * size);
  for (const at of range(size)) found[at * size + at] = 1;
  return found;
}

/** (A + I) / 2, row by row. */
function half(weights: Weights): Float64Array {
  const size = weights.queries;
  const found = new Float64Array(size * size);
  for (const head of range(weights.heads))
    for (const query of range(size))
      weights.each(head, query, (key, weight) => {
        found[query * size + key] += weight / (2 * weights.heads);
      });
  for (const at of range(size)) found[at * size + at] += 0.5;
  return found;
}

function multiplied(a: Float64Array, b: Float64Array, size: number): Float64Array {
  const found = new Float64Array(size * size);
  for (let i = 0; i < size; i++)
    for (let k = 0; k < size; k++) {
      const factor = a[i * size + k];
      if (factor) for (let j = 0; j < size; j++) found[i * size + j] += factor * b[k * size + j];
    }
  return found;
}
