// What leaves the page as a file.
import { type AtlasSheet, atlasSheet } from "../drawing/atlas-sheet.ts";
import { type Sheet, sheet } from "../drawing/drawing.ts";
import { LIGHT } from "../drawing/palette.ts";
import { CanvasPen, type Pen, SvgPen } from "../drawing/pen.ts";
import { type Picture, writeBertViz, writePicture } from "../drawing/picture.ts";

/** What is drawn into a file: on white, whatever the page's colours are. */
export type Shown = Sheet | AtlasSheet;

function draw(pen: Pen, shown: Shown): { width: number; height: number } {
  return "layers" in shown ? atlasSheet(pen, LIGHT, shown) : sheet(pen, LIGHT, shown);
}

export function svg(shown: Shown): Blob {
  return new Blob([svgText(shown)], { type: "image/svg+xml" });
}

export function svgText(shown: Shown): string {
  const pen = new SvgPen();
  const { width, height } = draw(pen, shown);
  return pen.document(width, height, `${shown.heading}: ${shown.about}`);
}

/** Twice as many pixels as the SVG is wide. */
export async function png(shown: Shown): Promise<Blob> {
  const { width, height } = draw(new SvgPen(), shown);
  const canvas = document.createElement("canvas");
  canvas.width = width * 2;
  canvas.height = height * 2;
  // It is read once: drawn by the CPU, it need not come back from a GPU.
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  context.scale(2, 2);
  draw(new CanvasPen(context), shown);
  const blob = await new Promise<Blob | null>((made) => canvas.toBlob(made, "image/png"));
  if (!blob) throw new Error("the picture is too large for this browser; take SVG, or fewer heads");
  return blob;
}

export function json(picture: Picture): Blob {
  return new Blob([`${JSON.stringify(writePicture(picture))}\n`], { type: "application/json" });
}

export function bertViz(picture: Picture): Blob {
  return new Blob([`${JSON.stringify(writeBertViz(picture))}\n`], { type: "application/json" });
}

/** One file that shows the picture by itself. `viewer` is the page with an empty place for it. */
export function standalone(viewer: string, picture: Picture): Blob {
  // "<" would let a token end the script element.
  const content = JSON.stringify(writePicture(picture)).replaceAll("<", "\\u003c");
  const filled = viewer.replace(/(<script type="application\/json" id="picture">)null/, (_, start) => start + content);
  return new Blob([filled], { type: "text/html" });
}

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
