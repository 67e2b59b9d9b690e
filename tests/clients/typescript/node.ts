// The TypeScript client on Node: node.ts SCENARIO HOST:PORT, bundled. Prints one line of JSON.
import { run } from "./scenarios.ts";

declare const process: { argv: string[]; stdin: { once(name: string, call: () => void): { resume(): void } } };

const [, , scenario, target] = process.argv;
const stopped = new Promise<void>((resolve) => {
  if (scenario === "cancel") process.stdin.once("end", resolve).resume();
});
console.log(JSON.stringify(await run(scenario, `http://${target}`, stopped)));
