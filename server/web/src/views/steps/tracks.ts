// The three tracks of the steps: what each screen says, and which rows of the one table it shows.
import { html, type TemplateResult } from "lit-html";
import type { Track } from "../../state/state.ts";
import type { RowName } from "./rows.ts";
import type { Tour } from "./tour.ts";

export interface Screen {
  title: string;
  says(tour: Tour): TemplateResult;
  /** The rows of the table, from above; the last ones are new. */
  rows: RowName[];
  /** How many of the last rows are new on this screen. */
  news: number;
}

export const TRACK_NAMES: Record<Track, string> = {
  qkv: "A  Query, key, value",
  heads: "B  Several heads",
  two: "C  Two sequences",
  stages: "Every stage",
};

const word = (tour: Tour) => html`<b class="chosen">${tour.word}</b>`;

const QKV: Screen[] = [
  {
    title: "Nothing is learned yet",
    says: (
      tour,
    ) => html`Each word is a vector <i>v</i>. The vector of ${word(tour)} is multiplied with every other: a <b>dot product</b> is
      the score of a pair. Softmax <b>normalizes</b> the scores to weights, which add up to 1, and the result is a <b>weighted sum</b> of the
      same vectors. They are used twice: to be scored, and to be blended.`,
    rows: ["v", "rawScore", "rawWeight", "rawPart", "rawSum"],
    news: 5,
  },
  {
    title: "A query: what the word looks for",
    says: (
      tour,
    ) => html`The first trained matrix: <i>q</i> = <i>v</i> · M<sub>Q</sub>. In place of its own vector, ${word(tour)} asks
      with its <b>query</b>: what to compare with is learned.`,
    rows: ["v", "q"],
    news: 1,
  },
  {
    title: "Keys: what each word is found by",
    says: (
      tour,
    ) => html`The second: <i>k</i> = <i>v</i> · M<sub>K</sub>. Scores are now dot products of the query of ${word(tour)} with the
      <b>key</b> of each word, times a scale; softmax makes weights of them, as before.`,
    rows: ["q", "k", "score", "weight"],
    news: 3,
  },
  {
    title: "Values: what each word gives",
    says: () => html`The third: <i>val</i> = <i>v</i> · M<sub>V</sub>. What is blended is no longer the vector, but the <b>value</b> of each
      word, multiplied by its weight.`,
    rows: ["weight", "value", "part", "sum"],
    news: 3,
  },
  {
    title: "All together",
    says: (
      tour,
    ) => html`What ${word(tour)} looks for, what each word is found by, and what it gives are three learned views of one vector.
      Compare the weights with those of the first screen, where nothing was learned.`,
    rows: ["q", "k", "score", "weight", "value", "part", "sum", "rawWeight"],
    news: 0,
  },
];

const HEADS: Screen[] = [
  {
    title: "One relationship at a time",
    says: (
      tour,
    ) => html`One head is one weighted sum: it can follow one relationship of ${word(tour)}. This is head ${tour.head}; below is what
      the model answers with this head alone, every other switched off.`,
    rows: ["weight", "alone"],
    news: 2,
  },
  {
    title: "Several heads at once",
    says: (
      tour,
    ) => html`So ${tour.heads} heads run in parallel, each with its own three matrices, and each is free to look
      somewhere else. Click a head to go on with it.`,
    rows: ["allHeads"],
    news: 1,
  },
  {
    title: "Combined",
    says: (
      tour,
    ) => html`The heads' sums for ${word(tour)} are set side by side, and one more trained matrix, M<sub>O</sub>, makes one vector of
      them: each head adds its part.`,
    rows: ["contributions", "output", "answers"],
    news: 3,
  },
];

const TWO: Screen[] = [
  {
    title: "Two sequences",
    says: (tour) =>
      tour.cross
        ? html`Self-attention looks within one sequence. In <b>cross-attention</b> the query comes from one sequence, here from
          ${word(tour)} of the target, and keys and values from another one, the source.`
        : html`Self-attention looks within one sequence: query, keys and values come from the same words. For cross-attention, pick a
          model that reads a source.`,
    rows: ["q", "k"],
    news: 2,
  },
  {
    title: "From one into the other",
    says: (
      tour,
    ) => html`The score of each word ${tour.cross ? "of the source" : ""} is the dot product of its key with the query of
      ${word(tour)}, and its weight the share that it has.`,
    rows: ["q", "k", "score", "weight"],
    news: 2,
  },
  {
    title: "What is taken over",
    says: (
      tour,
    ) => html`The values ${tour.cross ? "of the source" : ""}, blended by these weights, are what ${word(tour)} takes in. A translation
      does this for each word that it says.`,
    rows: ["weight", "value", "part", "sum", "answers"],
    news: 4,
  },
];

export const SCREENS: Record<Exclude<Track, "stages">, Screen[]> = { qkv: QKV, heads: HEADS, two: TWO };
