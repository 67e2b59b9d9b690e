// The form for a bearer token, shown while a request waits for one.
import { html, nothing, type TemplateResult } from "lit-html";

export class TokenForm {
  private give: ((token: string) => void) | null = null;

  constructor(private readonly render: () => void) {}

  /** Shows the form and returns what is entered. */
  ask(): Promise<string> {
    return new Promise((resolve) => {
      this.give = resolve;
      this.render();
    });
  }

  template(): TemplateResult | typeof nothing {
    return this.give
      ? html`<form class="token" @submit=${(event: SubmitEvent) => this.submit(event)}><div class="field">
          <label for="token">This server asks for a bearer token</label>
          <input id="token" name="token" type="password" autocomplete="off" required></div>
          <button class="primary">Use it</button><p class="hint">It is kept until this tab is closed.</p></form>`
      : nothing;
  }

  private submit(event: SubmitEvent): void {
    event.preventDefault();
    const field = (event.target as HTMLFormElement).elements.namedItem("token") as HTMLInputElement;
    const { give } = this;
    this.give = null;
    this.render();
    give?.(field.value.trim());
  }
}
