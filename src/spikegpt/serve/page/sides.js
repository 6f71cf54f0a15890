// The same text written twice from one state: with events, and by reading every weight.
import { post, stream } from "./api.js";

/**
 * Writes both, one after the other, so that neither slows the other down.
 * @param {string} before @param {any} settings @param {AbortSignal} signal
 * @param {(dense: boolean, text: string, speed: number) => void} show called with more text, and tokens a second so far
 * @returns {Promise<boolean>} whether both wrote the same
 */
export async function writeTwice(before, settings, signal, show) {
  const { id: from } = await post("/v1/sessions", { prompt: before });
  const texts = ["", ""];
  for (const dense of [false, true]) {
    const { id: session } = await post(`/v1/sessions/${from}/fork`);
    const body = { ...settings, session, dense, prompt: "", return_token_ids: true, stream_interval: 4 };
    const begun = performance.now();
    let tokens = 0;
    for await (const event of stream("/v1/completions", body, signal)) {
      const choice = event.choices[0];
      tokens += choice.token_ids.length;
      texts[Number(dense)] += choice.text;
      show(dense, texts[Number(dense)], 1000 * tokens / (performance.now() - begun));
    }
  }
  return texts[0] === texts[1];
}
