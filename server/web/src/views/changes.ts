// What was changed in an input, in words.

import type { Model } from "../api/api.ts";
import { headOf, layerOf } from "../api/ask.ts";
import { token } from "../drawing/format.ts";
import type { Input } from "../state/state.ts";

export function saidChanges({ hidden, off, temperature }: Input, keys: string[], { manifest }: Model): string[] {
  const several = manifest.layers.length > 1;
  return [
    ...hidden.filter((key) => key < keys.length).map((key) => `“${token(keys[key])}” hidden`),
    ...off.map((pair) => `${several ? `layer ${layerOf(pair)} ` : ""}head ${headOf(pair)} off`),
    ...(temperature === 1 ? [] : [`temperature ${temperature}`]),
  ];
}
