// Attention Service by gRPC: node grpc.mjs SCENARIO HOST:PORT, with PROTO_PATH=FOLDER:FOLDER of the .proto files, those of
// googleapis among them. Prints one line of JSON.
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [scenario, target] = process.argv.slice(2);
const files = ["attention/v1/attention.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const includeDirs = process.env.PROTO_PATH.split(":");
const definition = loadSync(files, { includeDirs, keepCase: true, longs: Number, enums: String });
const { attention, google } = grpc.loadPackageDefinition(definition);

// Calls that find the server away or full are repeated.
const retryPolicy = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};
const serviceConfig = { methodConfig: [{ name: [{ service: "attention.v1.AttentionService" }], retryPolicy }] };
const client = new attention.v1.AttentionService(target, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(serviceConfig),
  "grpc.max_receive_message_length": -1,
});
const within = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

function tensor(numbers, shape) {
  return { data_type: "DATA_TYPE_FP32", shape, data: Buffer.from(Float32Array.from(numbers).buffer) };
}

function numbers({ data }) {
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
}

function request(query, ...outputs) {
  return { model: "dot", inputs: [{ query }], outputs: outputs.map((name) => ({ name })) };
}

function attend(message, options = within(60)) {
  return new Promise((resolve, reject) =>
    client.Attend(message, options, (error, answer) => (error ? reject(error) : resolve(answer))),
  );
}

/** What a failed call tells: the code, and the field at fault from the details of its status. */
function failure(error) {
  const told = { code: grpc.status[error.code], message: error.details, field: "" };
  for (const packed of error.metadata.get("grpc-status-details-bin")) {
    for (const { type_url, value } of decode("Status", packed).details)
      if (type_url.endsWith("BadRequest")) told.field = decode("BadRequest", value).field_violations[0].field;
  }
  return told;
}

function decode(name, bytes) {
  return definition[`google.rpc.${name}`].deserialize(bytes);
}

async function unary() {
  const { results } = await attend(request(tensor([1, 0, 0, 1, 1, 1], [3, 2]), "output", "weights"));
  const [output, weights] = results[0].outputs;
  return { output: [...numbers(output.tensor)], shape: weights.tensor.shape };
}

async function stream() {
  const call = client.AttendStream(within(60));
  for (let id = 0; id < 100; id++) call.write({ id: `${id}`, request: request(tensor([id, 1, 0, 1], [2, 2]), "output") });
  call.end();
  const answers = [];
  for await (const { id, response } of call) answers.push([Number(id), numbers(response.results[0].outputs[0].tensor)[0]]);
  return { answers };
}

async function large() {
  const shape = [2, (30 * 2 ** 20) / 8];
  const { results } = await attend(request(tensor(new Float32Array(shape[0] * shape[1]).fill(1), shape), "output"));
  const output = numbers(results[0].outputs[0].tensor);
  return { numbers: output.length, sum: output.reduce((sum, each) => sum + each, 0) };
}

async function deadline() {
  return attend(request(tensor([1, 0], [1, 2]), "output"), within(1)).catch(failure);
}

async function cancel() {
  return new Promise((resolve) => {
    const message = request(tensor([1, 0], [1, 2]), "output");
    const call = client.Attend(message, within(600), (error) => resolve(failure(error)));
    process.stdin.once("end", () => call.cancel()).resume();
  });
}

async function errors() {
  return attend(request(tensor([1, 0], [2]), "output")).catch(failure);
}

const report = await { unary, stream, large, deadline, cancel, errors, retry: unary }[scenario]();
console.log(JSON.stringify(report));
client.close();
