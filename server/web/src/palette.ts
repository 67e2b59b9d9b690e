// Colours: ramps whose lightness rises or falls evenly, and Okabe and Ito's eight for heads, which colour-blind eyes part.
import { interpolateBlues, interpolateCividis, interpolatePuOr } from "d3-scale-chromatic";

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

export const LIGHT: Palette = {
  ramp: (weight) => interpolateBlues(weight ** 0.8),
  difference: (weight) => interpolatePuOr(0.5 + weight / 2),
  ink: "#1c2027",
  muted: "#5c6470",
  paper: "#ffffff",
  accent: "#b34700",
  heads: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800"],
};

export const DARK: Palette = {
  ramp: (weight) => interpolateCividis(weight ** 0.8),
  // From blue over the paper to orange: a pale middle would glare.
  difference: (weight) => mixed([38, 44, 54], weight < 0 ? [104, 173, 255] : [255, 160, 70], Math.abs(weight)),
  ink: "#e9ebf0",
  muted: "#a0a8b5",
  paper: "#171b22",
  accent: "#ffa656",
  heads: ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#ffffff", "#4a90d9"],
};

function mixed(from: number[], to: number[], share: number): string {
  const part = Math.min(1, share) ** 0.8;
  return `rgb(${from.map((each, at) => Math.round(each + (to[at] - each) * part)).join(", ")})`;
}

const darkSystem = matchMedia("(prefers-color-scheme: dark)");

/** The palette of what the page shows now. */
export function palette(): Palette {
  const chosen = document.documentElement.dataset.theme;
  return (chosen ? chosen === "dark" : darkSystem.matches) ? DARK : LIGHT;
}

/** Calls back when the system changes between light and dark. */
export function onSystemChange(changed: () => void): void {
  darkSystem.addEventListener("change", changed);
}

export function headColour(colours: Palette, head: number): string {
  return colours.heads[head % colours.heads.length];
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
