// Light or dark: the system's, until one is chosen.
const KEPT = "attention.theme";

export class Theme {
  private readonly root = document.documentElement;

  constructor() {
    const kept = localStorage.getItem(KEPT);
    if (kept === "light" || kept === "dark") this.root.dataset.theme = kept;
  }

  /** Chooses the other one, and keeps it. */
  turn(): void {
    const chosen = this.root.dataset.theme;
    const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    this.root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem(KEPT, this.root.dataset.theme);
  }
}
