// The words that a model of a closed vocabulary reads, asked for when they are to be seen.
import { html, nothing, type TemplateResult } from "lit-html";
import type { Api, Model } from "../api/api.ts";

export class Vocabulary {
  private readonly words = new Map<string, string[]>();

  constructor(
    private readonly api: Api,
    private readonly changed: () => void,
  ) {}

  /** The words behind a summary; nothing for a model that reads any word. */
  template(model: Model): TemplateResult | typeof nothing {
    const { text } = model.manifest;
    if (!text || text.allow_unknown || model.manifest.block === "transformer") return nothing;
    const words = this.words.get(model.name);
    const open = (event: Event) => (event.target as HTMLDetailsElement).open && !words && this.ask(model);
    return html`<details class="vocabulary" @toggle=${open}><summary>The words that ${model.name} reads</summary>
      <p>${words ? words.join(" ") : "asking"}</p></details>`;
  }

  private async ask(model: Model): Promise<void> {
    try {
      const { words = [], memory_words = [] } = await this.api.words(model);
      this.words.set(model.name, [...new Set([...memory_words, ...words])]);
    } catch {
      this.words.delete(model.name); // opening it anew asks again
    }
    this.changed();
  }
}
