// How numbers and tokens are written.
import { format } from "d3-format";

const exact = format(".6~g");
const short = format(".3~g");

/** A weight, with four places. */
export function weight(value: number): string {
  return value > 0 && value < 0.00005 ? "<0.0001" : value.toFixed(4);
}

/** A share of one, with two places. */
export function share(value: number): string {
  return value > 0 && value < 0.005 ? "<0.01" : value.toFixed(2);
}

/** Any number, with six digits. */
export function number(value: number): string {
  if (value === Number.NEGATIVE_INFINITY) return "−∞";
  const written = value !== 0 && Math.abs(value) < 0.0001 ? value.toExponential(4) : exact(value);
  return written.replace("-", "−");
}

/** Any number, with three digits. */
export function brief(value: number): string {
  return value === Number.NEGATIVE_INFINITY ? "−∞" : short(value).replace("-", "−");
}

/** A token as it can stand in a line. */
export function token(text: string): string {
  return text === "" ? "∅" : text.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, (each) => JSON.stringify(each).slice(1, -1));
}

/** A token that fits, cut with an ellipsis. */
export function cut(text: string, most: number): string {
  const whole = token(text);
  return whole.length > most ? `${whole.slice(0, most - 1)}…` : whole;
}
