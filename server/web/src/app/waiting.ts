// The wait for a server that is not there yet.
import { html, render } from "lit-html";
import type { Api, Model } from "../api/api.ts";
import { problemOf } from "./problem.ts";

/** Seconds until what failed is asked again. */
export const RETRIES = [1, 2, 4, 8, 15];

/** The models that are served; waits for the server, for as long as it takes. */
export async function modelsOf(api: Api, root: HTMLElement): Promise<Model[]> {
  for (let attempt = 0; ; attempt++) {
    let said = "No model is served yet.";
    try {
      const models = await api.models();
      if (models.length) return models;
    } catch (error) {
      said = problemOf(error).message;
    }
    await new Promise<void>((again) => {
      const wait = setTimeout(again, 1000 * RETRIES[Math.min(attempt, RETRIES.length - 1)]);
      const now = () => {
        clearTimeout(wait);
        again();
      };
      render(
        html`<main class="empty"><h1>Attention</h1><p class="problem" role="alert">${said} The page asks again by itself.</p>
          <button type="button" @click=${now}>Ask again</button></main>`,
        root,
      );
    });
  }
}
