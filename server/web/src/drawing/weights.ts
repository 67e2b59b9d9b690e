// Attention weights of one layer, [H, T, S]: whole, or the k largest of each row.

/** The weights of one layer. A row that is not complete knows its largest keys only. */
export class Weights {
  /**
   * @param indices key positions [H, T, k] of `values`; null where the rows are whole, in the order of the keys
   * @param values [H, T, k], or [H, T, S]
   */
  private constructor(
    readonly heads: number,
    readonly queries: number,
    readonly keys: number,
    private readonly indices: ArrayLike<number> | null,
    private readonly values: Float32Array,
  ) {}

  static whole([heads, queries, keys]: number[], values: Float32Array): Weights {
    return new Weights(heads, queries, keys, null, values);
  }

  /** The k largest of each row; where k reaches all keys, the whole. */
  static largest(
    [heads, queries, k]: number[],
    keys: number,
    indices: ArrayLike<number>,
    values: Float32Array,
  ): Weights {
    if (k < keys) return new Weights(heads, queries, keys, indices, values);
    const whole = new Float32Array(values.length);
    for (let at = 0; at < values.length; at++) whole[Math.floor(at / k) * k + indices[at]] = values[at];
    return new Weights(heads, queries, keys, null, whole);
  }

  /** Whether every weight is known. */
  get complete(): boolean {
    return this.indices === null;
  }

  /** Whether no weight is known yet. */
  get pending(): boolean {
    return this.values.length === 0;
  }

  /** How many keys of a row are known. */
  get known(): number {
    return this.heads && this.queries ? this.values.length / (this.heads * this.queries) : 0;
  }

  /** Calls back with each key of a row that is known, and its weight. */
  each(head: number, query: number, visit: (key: number, weight: number) => void): void {
    const k = this.known;
    const start = (head * this.queries + query) * k;
    for (let at = 0; at < k; at++) visit(this.indices ? this.indices[start + at] : at, this.values[start + at]);
  }

  /** One row, [S]; 0 for what is not known. */
  row(head: number, query: number): Float32Array {
    const row = new Float32Array(this.keys);
    this.each(head, query, (key, weight) => {
      row[key] = weight;
    });
    return row;
  }

  /** One weight; undefined where it is not known. */
  at(head: number, query: number, key: number): number | undefined {
    if (this.indices === null) return this.values[(head * this.queries + query) * this.keys + key];
    let found: number | undefined;
    this.each(head, query, (known, weight) => {
      if (known === key) found = weight;
    });
    return found;
  }

  /** The largest of all. */
  get most(): number {
    return this.values.reduce((most, each) => Math.max(most, each), 0);
  }

  /** The largest of all, whatever its sign. */
  get largest(): number {
    return this.values.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
  }

  /** The mean of some heads, [1, T, S]; where the weights are whole. */
  mean(heads: number[]): Weights {
    const size = this.queries * this.keys;
    const values = new Float32Array(size);
    for (const head of heads)
      for (let at = 0; at < size; at++) values[at] += this.values[head * size + at] / heads.length;
    return Weights.whole([1, this.queries, this.keys], values);
  }

  /** Without some keys and rows: the rows that stay are shares of the keys that stay. Where the weights are whole. */
  renormalised(keys: boolean[], queries: boolean[]): Weights {
    const values = new Float32Array(this.values.length);
    for (let row = 0; row < this.heads * this.queries; row++) {
      if (!queries[row % this.queries]) continue;
      const start = row * this.keys;
      let sum = 0;
      for (let key = 0; key < this.keys; key++) if (keys[key]) sum += this.values[start + key];
      for (let key = 0; key < this.keys; key++)
        if (keys[key] && sum > 0) values[start + key] = this.values[start + key] / sum;
    }
    return Weights.whole([this.heads, this.queries, this.keys], values);
  }

  /** Rows as nested lists [H][T][S], with the fewest digits that give float32 back. */
  nested(): number[][][] {
    return range(this.heads).map((head) =>
      range(this.queries).map((query) => Array.from(this.row(head, query), shortest)),
    );
  }

  /** The k largest as nested lists [H][T][k]. */
  nestedLargest(): { indices: number[][][]; values: number[][][] } {
    const indices: number[][][] = [];
    const values: number[][][] = [];
    for (const head of range(this.heads)) {
      indices.push(range(this.queries).map(() => []));
      values.push(range(this.queries).map(() => []));
      for (const query of range(this.queries))
        this.each(head, query, (key, weight) => {
          indices[head][query].push(key);
          values[head][query].push(shortest(weight));
        });
    }
    return { indices, values };
  }
}

/** The integers 0..count-1. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** The number with the fewest digits that is the same float32. */
export function shortest(value: number): number {
  for (let digits = 6; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}

/** Shannon's entropy of a row of weights, in bits: 0 where all lies on one key, log2(S) where it is spread evenly. */
export function entropy(row: ArrayLike<number>): number {
  let bits = 0;
  for (let key = 0; key < row.length; key++) if (row[key] > 0) bits -= row[key] * Math.log2(row[key]);
  return Math.max(0, bits);
}

/** The mean entropy of a head's rows; undefined where rows are not known whole. */
export function meanEntropy(weights: Weights, head: number): number | undefined {
  if (!weights.complete || !weights.queries) return undefined;
  return range(weights.queries).reduce((sum, query) => sum + entropy(weights.row(head, query)), 0) / weights.queries;
}
