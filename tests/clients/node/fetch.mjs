// Attention Service by fetch: node fetch.mjs SCENARIO HOST:PORT. Prints one line of JSON.
const [scenario, target] = process.argv.slice(2);
const url = `http://${target}/v1/models/dot:attend`;

/** Sends a request; one that finds the server full is repeated when the server says. Throws the error of an answer. */
async function attend(request, { seconds = 60, signal } = {}) {
  const headers = { "content-type": "application/json", "x-request-timeout": String(seconds) };
  for (let left = 5; ; left--) {
    const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(request), signal });
    const answer = await response.json();
    if (response.ok) return answer.results[0];
    if (![429, 503].includes(response.status) || !left) throw answer.error; // { code, status, message, field, request_id }
    const pause = Number(response.headers.get("retry-after") ?? 1);
    await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
  }
}

const failure = ({ status, message, field }) => ({ code: status, message, field: field ?? "" });

async function unary() {
  const query = [[1, 0], [0, 1], [1, 1]]; // biome-ignore format: a matrix
  const { outputs } = await attend({ query, outputs: ["output", "weights"] });
  return { output: outputs.output.values.flat(), shape: outputs.weights.shape };
}

/** REST has no streams: requests follow one another, two at a time. */
async function stream() {
  const answers = [];
  for (let id = 0; id < 100; id += 2) {
    const some = [id, id + 1];
    const results = await Promise.all(some.map((each) => attend({ query: [[each, 1], [0, 1]] }))); // biome-ignore format: a matrix
    answers.push(...results.map(({ outputs }, i) => [some[i], outputs.output.values[0][0]]));
  }
  return { answers };
}

/** Large arrays travel as base64 of little-endian bytes. */
async function large() {
  const shape = [2, (30 * 2 ** 20) / 8];
  const data = Buffer.from(new Float32Array(shape[0] * shape[1]).fill(1).buffer).toString("base64");
  const { outputs } = await attend({ query: { shape, data }, outputs: ["output"], encoding: "base64" });
  const bytes = Uint8Array.from(Buffer.from(outputs.output.data, "base64"));
  const output = new Float32Array(bytes.buffer);
  return { numbers: output.length, sum: output.reduce((sum, each) => sum + each, 0) };
}

async function deadline() {
  return attend({ query: [[1, 0]] }, { seconds: 1 }).catch(failure);
}

async function cancel() {
  const control = new AbortController();
  process.stdin.once("end", () => control.abort()).resume();
  return attend({ query: [[1, 0]] }, { seconds: 600, signal: control.signal }).catch((error) => {
    return { code: error.name === "AbortError" ? "CANCELLED" : error.name };
  });
}

async function errors() {
  return attend({ query: [1, 0] }).catch(failure);
}

console.log(JSON.stringify(await { unary, stream, large, deadline, cancel, errors, retry: unary }[scenario]()));
