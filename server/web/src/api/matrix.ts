// Vectors that people bring: nested lists, JSON, .npy and CSV, to [T, D].
import { shortest } from "../drawing/weights.ts";

/** T vectors of D numbers, row-major. */
export interface Matrix {
  rows: number;
  columns: number;
  data: Float32Array;
}

/** What is small enough to be shown as text, and put into a link. */
const MOST_SHOWN = 600;

export function isShort(matrix: Matrix): boolean {
  return matrix.data.length <= MOST_SHOWN;
}

export function row(matrix: Matrix, at: number): Float32Array {
  return matrix.data.subarray(at * matrix.columns, (at + 1) * matrix.columns);
}

export function writeMatrix(matrix: Matrix): string {
  const rows = Array.from({ length: matrix.rows }, (_, at) => Array.from(row(matrix, at), shortest));
  return JSON.stringify(rows).replaceAll("],[", "],\n [");
}

/** Reads nested lists of numbers; throws an Error that says what is wrong. */
export function readJson(text: string): Matrix {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("is no JSON; write vectors as [[1, 0], [0, 1]]");
  }
  return fromNested(value);
}

export function fromNested(value: unknown): Matrix {
  const rows = Array.isArray(value) && Array.isArray(value[0]) && Array.isArray(value[0][0]) ? value[0] : value;
  if (!Array.isArray(rows) || !rows.every(Array.isArray))
    throw new Error("expected a list of vectors, [[1, 0], [0, 1]]");
  return fromRows(rows as unknown[][]);
}

/** Reads comma, semicolon or tab separated numbers, a vector a line; a first line without numbers is a heading. */
export function readCsv(text: string): Matrix {
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== "");
  const cells = lines.map((line) =>
    line.split(/[,;\t]/).map((cell) => (cell.trim() === "" ? Number.NaN : Number(cell))),
  );
  return fromRows(cells.length && cells[0].some(Number.isNaN) ? cells.slice(1) : cells);
}

function fromRows(rows: unknown[][]): Matrix {
  const columns = rows[0]?.length ?? 0;
  if (!columns) throw new Error("has no numbers");
  const ragged = rows.findIndex((each) => each.length !== columns);
  if (ragged >= 0) throw new Error(`vector ${ragged} has ${rows[ragged].length} numbers, the first ${columns}`);
  const flat = rows.flat();
  const wrong = flat.findIndex((each) => typeof each !== "number" || !Number.isFinite(each));
  if (wrong >= 0) throw new Error(`vector ${Math.floor(wrong / columns)}, place ${wrong % columns} holds no number`);
  return { rows: rows.length, columns, data: Float32Array.from(flat as number[]) };
}

const NPY: Record<string, new (buffer: ArrayBuffer) => ArrayLike<number | bigint>> = {
  "<f4": Float32Array,
  "<f8": Float64Array,
  "<i4": Int32Array,
  "<i8": BigInt64Array,
  "<i2": Int16Array,
  "<u2": Uint16Array,
  "<u4": Uint32Array,
  "|i1": Int8Array,
  "|u1": Uint8Array,
};

/** Reads NumPy's .npy of rank 2, or of rank 3 with one sequence. */
export function readNpy(buffer: ArrayBuffer): Matrix {
  const bytes = new Uint8Array(buffer);
  if (String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("is no .npy file");
  const view = new DataView(buffer);
  const long = bytes[6] > 1;
  const start = (long ? 12 : 10) + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(long ? 12 : 10, start));
  const kind = /'descr': '([^']+)'/.exec(header)?.[1] ?? "";
  let shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "")
    .split(",")
    .filter((each) => each.trim())
    .map(Number);
  if (shape.length === 3 && shape[0] === 1) shape = shape.slice(1);
  if (shape.length !== 2) throw new Error(`has shape [${shape}]; expected [T, D]`);
  const Kind = NPY[kind];
  if (!Kind) throw new Error(`holds ${kind || "objects"}; expected ${Object.keys(NPY).join(", ")}`);
  const data = Float32Array.from(Array.from(new Kind(buffer.slice(start)), Number));
  const [rows, columns] = shape;
  if (data.length !== rows * columns) throw new Error(`is cut off: ${data.length} of ${rows * columns} numbers`);
  return { rows, columns, data: header.includes("'fortran_order': True") ? transposed(data, rows, columns) : data };
}

function transposed(data: Float32Array, rows: number, columns: number): Float32Array {
  return data.map((_, at) => data[(at % columns) * rows + Math.floor(at / columns)]);
}
