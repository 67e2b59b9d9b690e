// Which heads are met, and what each of them answers.
import type { Answer } from "../../api/answer.ts";
import type { Picture, Prediction } from "../../drawing/picture.ts";
import { range } from "../../drawing/weights.ts";

/** One head of one layer. */
export interface Met {
  layer: number;
  /** As in `Input.off`: "layer.head". */
  pair: string;
  head: number;
  name: string;
  /** Which of the heads' colours. */
  colour: number;
}

const MOST = 4;

/** The key with the largest weight of a row, among some. */
export function best(
  row: ArrayLike<number>,
  counts: (key: number) => boolean = () => true,
): { key: number; weight: number } {
  let found = { key: -1, weight: -1 };
  for (let key = 0; key < row.length; key++)
    if (counts(key) && row[key] > found.weight) found = { key, weight: row[key] };
  return found;
}

/** How much a head looks from a position at words other than itself and special tokens. */
function strength({ picture, special }: Answer, layer: number, head: number, query: number, distance = 1): number {
  const row = picture.layers[layer].weights.row(head, query);
  return best(row, (key) => !special[key] && !(picture.toItself && Math.abs(key - query) < distance)).weight;
}

const FAR = 3; // positions to a word whose look is worth a first question

/** The position to begin with: the one that predictions are read from, else the word that looks at a far one the most. */
export function firstQuery(answer: Answer): number {
  const { picture, special } = answer;
  if (picture.focus !== null && picture.focus < picture.queries.length) return picture.focus;
  const rows = range(picture.queries.length).filter(
    (query) => !special[query] && /\p{L}/u.test(picture.queries[query]),
  );
  if (!picture.toItself || rows.length === 0 || rows.length > 64) return picture.queries.length - 1;
  const pairs = picture.layers.flatMap(({ weights }, layer) => range(weights.heads).map((head) => ({ layer, head })));
  const strengths = rows.map((query) =>
    Math.max(...pairs.map(({ layer, head }) => strength(answer, layer, head, query, FAR))),
  );
  return rows[strengths.indexOf(Math.max(...strengths))];
}

/** All heads where they are few; else those that are switched off, and the strongest. */
export function metHeads(answer: Answer, query: number, off: string[]): Met[] {
  const { layers } = answer.picture;
  const all = layers.flatMap(({ name, weights }, layer) =>
    range(weights.heads).map((head) => ({
      layer,
      head,
      pair: `${name}.${head}`,
      strength: strength(answer, layer, head, query),
    })),
  );
  const few = all.length <= MOST;
  const chosen = few
    ? all
    : [...all]
        .sort((a, b) => Number(off.includes(b.pair)) - Number(off.includes(a.pair)) || b.strength - a.strength)
        .slice(0, MOST);
  return chosen.map(({ layer, head, pair }, at) => ({
    layer,
    head,
    pair,
    name: layers.length > 1 ? `layer ${layers[layer].name} · head ${head}` : `head ${head}`,
    colour: few && layers.length === 1 ? head : at,
  }));
}

/** What the model says of a position: what is read from it, or from the one position that all is read from. */
export function said({ focus, predictions }: Picture, query: number): Prediction[] {
  if (focus !== null) return predictions;
  return predictions.filter(({ row }) => row === undefined || row === query);
}

/**
 * The prediction that each head answers: the one whose label is the token that this head, and no other, looks at most
 * from the position that the prediction is read from.
 */
export function answers({ picture }: Answer, met: Met[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const { name, label, row } of picture.predictions) {
    const from = row ?? picture.focus;
    if (from === null || from === undefined || from >= picture.queries.length) continue;
    const looking = met.filter(({ layer, head }) => {
      const { key, weight } = best(picture.layers[layer].weights.row(head, from));
      return weight >= 0.5 && picture.keys[key] === label;
    });
    if (looking.length === 1 && !found.has(looking[0].pair)) found.set(looking[0].pair, name);
  }
  return found;
}

/** The cosine between the vectors of a position behind the last layer, before and after; null where they are not known. */
export function kept(before: Answer, after: Answer, query: number): number | null {
  if (!before.vectors || !after.vectors) return null;
  const row = ({ width, data }: { width: number; data: Float32Array }) =>
    data.subarray(query * width, (query + 1) * width);
  const [a, b] = [row(before.vectors), row(after.vectors)];
  const dot = (x: Float32Array, y: Float32Array) => x.reduce((sum, each, i) => sum + each * y[i], 0);
  const lengths = Math.sqrt(dot(a, a) * dot(b, b));
  return a.length && lengths ? dot(a, b) / lengths : null;
}
