// Colours: ramps whose contrast with the paper rises evenly, light and dark, and eight for heads, after Okabe and Ito, which
// colour-blind eyes part. Where heads are more than colours, dashes part them.

export interface Palette {
  /** A weight in 0..1. */
  ramp: (weight: number) => string;
  /** A number or a difference in -1..1, around nothing. */
  difference: (weight: number) => string;
  ink: string;
  muted: string;
  paper: string;
  accent: string;
  heads: string[];
}

/** From the paper, which is no weight, through a colour to the ink that stands out most. */
export const LIGHT: Palette = {
  ramp: (weight) => along(["#ffffff", "#a9cbe6", "#2f7fbc", "#08306b"], weight),
  difference: (weight) =>
    along(weight < 0 ? ["#ffffff", "#b9a4d6", "#4a1d8a"] : ["#ffffff", "#f3a75c", "#8a3600"], Math.abs(weight)),
  ink: "#1c2027",
  muted: "#5c6470",
  paper: "#ffffff",
  accent: "#b34700",
  heads: ["#0068a8", "#b84e00", "#007a58", "#a8467d", "#2478ae", "#8a6100", "#5c4bb0", "#666600"],
};

export const DARK: Palette = {
  ramp: (weight) => along(["#171b22", "#24517c", "#5aa9e6", "#eaf5ff"], weight),
  difference: (weight) =>
    along(weight < 0 ? ["#171b22", "#6b4fa8", "#d9c8ff"] : ["#171b22", "#a05a1c", "#ffd9ae"], Math.abs(weight)),
  ink: "#e9ebf0",
  muted: "#a0a8b5",
  paper: "#171b22",
  accent: "#ffa656",
  heads: ["#56b4e9", "#ff9d4d", "#2fc79b", "#e39ac4", "#8cc8ff", "#f0c24a", "#b3a5ff", "#d6d65c"],
};

/** A colour on a way through others, evenly spaced. */
function along(stops: string[], share: number): string {
  const at = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const from = Math.min(stops.length - 2, Math.floor(at));
  const [a, b] = [rgb(stops[from]), rgb(stops[from + 1])];
  return `rgb(${a.map((each, i) => Math.round(each + (b[i] - each) * (at - from))).join(", ")})`;
}

const darkSystem = matchMedia("(prefers-color-scheme: dark)");
const printed = matchMedia("print");

/** The palette of what the page shows now; on paper the light one. */
export function palette(): Palette {
  const chosen = document.documentElement.dataset.theme;
  if (printed.matches) return LIGHT;
  return (chosen ? chosen === "dark" : darkSystem.matches) ? DARK : LIGHT;
}

/** Calls back when the system changes between light and dark, or between the screen and paper. */
export function onSystemChange(changed: () => void): void {
  for (const each of [darkSystem, printed]) each.addEventListener("change", changed);
}

export function headColour(colours: Palette, head: number): string {
  return colours.heads[head % colours.heads.length];
}

const DASHES = ["", "9 5", "2 5", "12 4 2 4"];

/** The dashes of a head's lines, for heads that share a colour. */
export function headDash(colours: Palette, head: number): string {
  return DASHES[Math.floor(head / colours.heads.length) % DASHES.length];
}

/** The red, green and blue of a colour written as #rrggbb or rgb(...). */
export function rgb(colour: string): number[] {
  return colour.startsWith("#")
    ? [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16))
    : colour.match(/\d+/g)!.map(Number);
}

/** Black or white, whichever is read better on a colour. */
export function inkOn(colour: string): string {
  const [red, green, blue] = rgb(colour).map((part) => (part / 255) ** 2.2);
  // Where both have the same contrast, by WCAG's formula: (L + 0.05)^2 = 1.05 * 0.05, black's own light counted.
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000000" : "#ffffff";
}
