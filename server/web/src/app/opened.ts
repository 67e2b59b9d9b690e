// A picture that was opened from a file, in place of a model's.
import { html, render } from "lit-html";
import { aboutPicture, type Picture } from "../drawing/picture.ts";
import { HeadsView } from "../views/heads/heads.ts";
import { layerChoice } from "../views/heads/layers.ts";
import type { View } from "../views/view.ts";
import type { Shown } from "./export.ts";

export class OpenedView implements View {
  readonly element = document.createElement("section");
  private readonly heads = new HeadsView(() => undefined);
  private layer: number;

  constructor(
    private readonly content: Picture,
    readonly name: string,
    private readonly changed: () => void,
  ) {
    this.layer = content.layers.length - 1;
  }

  async load(): Promise<void> {}

  show(): void {
    const choose = (layer: number) => {
      this.layer = layer;
      this.changed();
      this.show();
    };
    render(html`${layerChoice(this.content.layers, this.layer, choose)}${this.heads.element}`, this.element);
    this.heads.show(this.content, this.layer, null);
  }

  shown(): Shown {
    const { state, place } = this.heads;
    return {
      style: state.style,
      panels: this.heads.panelsShown(),
      heading: this.content.title,
      about: aboutPicture(this.content, this.content.layers[this.layer].name),
      place,
    };
  }

  picture(): Picture {
    return this.content;
  }
}
