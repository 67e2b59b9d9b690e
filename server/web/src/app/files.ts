// The files that a view is saved as.
import { askAnswer } from "../api/answer.ts";
import { besides } from "../api/ask.ts";
import type { Picture } from "../drawing/picture.ts";
import type { Context, View } from "../views/view.ts";
import { bertViz, download, json, png, standalone, svg } from "./export.ts";

const PICTURES = ["SVG", "PNG"];
/** Of a view that has more heads than it shows. */
const ALL_HEADS = ["SVG of all heads", "PNG of all heads"];
/** Of one input. */
const DATA = ["JSON", "HTML", "BertViz"];

/** The kinds of files of a view. @param compares whether it is of two inputs */
export function kindsOf(view: View, compares: boolean): string[] {
  return [...PICTURES, ...(view.allHeads?.() ? ALL_HEADS : []), ...(compares ? [] : DATA)];
}

/** Saves what a view shows. Without a context the picture of an opened file is all there is. */
export async function save(kind: string, view: View, context: Context | null): Promise<void> {
  const shown = ALL_HEADS.includes(kind) ? (view.allHeads?.() ?? null) : view.shown();
  const picture = view.picture();
  if (!shown || !picture) throw new Error("there is nothing to save yet");
  const name = picture.model || "attention";
  const whole = () => wholePicture(picture, context);
  if (kind.startsWith("SVG")) download(svg(shown), `${name}.svg`);
  else if (kind.startsWith("PNG")) download(await png(shown), `${name}.png`);
  else if (kind === "JSON") download(json(await whole()), `${name}.json`);
  else if (kind === "BertViz") download(bertViz(await whole()), `${name}.bertviz.json`);
  else download(standalone(await viewer(), await whole()), `${name}.html`);
}

/** A picture with every layer that has the same queries and keys. */
async function wholePicture(picture: Picture, context: Context | null): Promise<Picture> {
  if (!context || ["translate", "generate"].includes(context.state.view)) return picture;
  const layers = besides(context.model, context.layer);
  if (picture.layers.length === layers.length) return picture;
  return (await askAnswer(context.known, context.model, context.state.a, layers)).picture;
}

async function viewer(): Promise<string> {
  const path = document.querySelector<HTMLMetaElement>('meta[name="viewer"]')!.content;
  const response = await fetch(path);
  if (!response.ok) throw new Error(`the viewer cannot be read: ${response.status}`);
  return response.text();
}
