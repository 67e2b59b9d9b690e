// A story: views with captions, one below the other, in one file that loads nothing.
import { html, nothing, render } from "lit-html";
import { download, type Shown, svgText } from "./export.ts";

/** One view as it was when it was added. */
interface Scene {
  caption: string;
  /** An SVG document. */
  picture: string;
  /** The address that brings the view back. */
  link: string;
}

const STYLE = `:root{color-scheme:light}body{font:17px/1.6 system-ui,sans-serif;color:#1c2027;background:#f6f6f3;margin:0}
main{max-width:60rem;margin:3rem auto;padding:0 1.2rem}h1{font-size:2rem;line-height:1.2}
figure{margin:2.5rem 0;background:#fff;border:1px solid #dedfda;border-radius:14px;padding:1.2rem;break-inside:avoid}
figure svg{display:block;max-width:100%;height:auto}figcaption{margin-bottom:.8rem;font-size:1.1rem}a{color:#5c6470;font-size:.85rem}`;

export class Story {
  readonly element = document.createElement("dialog");
  private readonly scenes: Scene[] = [];
  private title = "A story of attention";

  /** @param changed is called when the number of views has changed */
  constructor(private readonly changed: () => void) {
    this.element.className = "drawer";
    this.element.setAttribute("aria-label", "Story");
  }

  get length(): number {
    return this.scenes.length;
  }

  /** Shows the story, and adds a view as it stands, where one is given. */
  open(shown: Shown | null): void {
    if (shown) {
      const caption = `${shown.heading} (${shown.about})`;
      this.scenes.push({ caption, picture: svgText(shown), link: location.href });
      this.changed();
    }
    this.show();
    if (!this.element.open) this.element.showModal();
  }

  private show(): void {
    const value = (event: Event) => (event.target as HTMLInputElement).value;
    render(
      html`<div class="drawer-body"><header><h2>Story</h2><button type="button" @click=${() => this.element.close()}>Close</button></header>
        <div class="field"><label for="story-title">Title</label><input id="story-title" .value=${this.title} @input=${(
          event: Event,
        ) => {
          this.title = value(event);
        }}></div>
        ${this.scenes.map(
          (
            scene,
            at,
          ) => html`<div class="field"><label for=${`story-${at}`}>View ${at + 1}</label><textarea id=${`story-${at}`} rows="2" .value=${scene.caption} @input=${(
            event: Event,
          ) => {
            scene.caption = value(event);
          }}></textarea>
            <button type="button" class="quiet" @click=${() => this.remove(at)}>leave view ${at + 1} out</button></div>`,
        )}
        ${
          this.scenes.length
            ? html`<p><button type="button" class="primary" @click=${() => download(this.file(), "story.html")}>Save as one HTML file</button></p>
              <p class="hint">Add further views by “Add to story” in the menu Export. The page forgets the story when it is closed.</p>`
            : nothing
        }</div>`,
      this.element,
    );
  }

  private remove(at: number): void {
    this.scenes.splice(at, 1);
    this.changed();
    this.show();
  }

  private file(): Blob {
    const figures = this.scenes.map(
      ({ caption, picture, link }) =>
        `<figure><figcaption>${escaped(caption)}</figcaption>\n${picture}<a href="${escaped(link)}">the live view</a></figure>`,
    );
    const head = `<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">`;
    const title = escaped(this.title);
    const text = `<!doctype html>\n<html lang="en"><head>${head}<title>${title}</title><style>${STYLE}</style></head>
<body><main><h1>${title}</h1>\n${figures.join("\n")}</main></body></html>\n`;
    return new Blob([text], { type: "text/html" });
  }
}

function escaped(text: string): string {
  const names: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (each) => names[each]);
}
