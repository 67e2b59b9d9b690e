// The tokens above the heads, coloured by what is looked at. Of thousands only those whose colour changes are touched.
import { shareOf } from "../../drawing/drawing.ts";
import { inkOn, type Palette } from "../../drawing/palette.ts";

const FAINTEST = 0.005; // the share of the ramp from which a token has a colour

export class Chips {
  private readonly queries = new Map<number, HTMLElement>();
  private readonly keys = new Map<number, HTMLElement>();
  private shaded: HTMLElement[] = [];
  private from: HTMLElement | undefined;

  /** @param root holds an element with `data-query`, `data-key` or both for each token, none of which has a colour yet */
  constructor(root: HTMLElement) {
    for (const chip of root.querySelectorAll<HTMLElement>(".chip")) {
      const { query, key } = chip.dataset;
      if (query !== undefined) this.queries.set(Number(query), chip);
      if (key !== undefined) this.keys.set(Number(key), chip);
      tint(chip, null);
      chip.classList.remove("from");
    }
  }

  /** @param weights by key; @param most the weight that has the ramp's last colour */
  colour(query: number | null, weights: ReadonlyMap<number, number>, most: number, colours: Palette): void {
    this.from?.classList.remove("from");
    this.from = query === null ? undefined : this.queries.get(query);
    this.from?.classList.add("from");
    for (const chip of this.shaded) tint(chip, null);
    this.shaded = [];
    for (const [key, weight] of weights) {
      const share = shareOf(weight, most);
      const chip = this.keys.get(key);
      if (share < FAINTEST || !chip) continue;
      tint(chip, colours.ramp(share));
      this.shaded.push(chip);
    }
  }
}

function tint({ style }: HTMLElement, colour: string | null): void {
  style.backgroundColor = colour ?? "";
  style.color = colour ? inkOn(colour) : "";
}
