// Requests to the server that this page came from.

let key = sessionStorage.getItem("key") ?? "";

/** @param {string} value */
export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

/** @param {string} type */
const headers = (type) => ({ "content-type": type, ...(key ? { authorization: `Bearer ${key}` } : {}) });

/**
 * One request; throws an Error with the server's line, and its status, where it is refused.
 * @param {string} method @param {string} path @param {any} [body] an object, or an ArrayBuffer
 */
export async function ask(method, path, body) {
  const binary = body instanceof ArrayBuffer;
  const options = { method, headers: headers(binary ? "application/octet-stream" : "application/json") };
  if (body !== undefined) options.body = binary ? body : JSON.stringify(body);
  const response = await fetch(path, options);
  if (!response.ok) await refuse(response);
  return response;
}

async function refuse(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {}
  throw Object.assign(new Error(message), { status: response.status });
}

/** @param {string} path */
export const get = async (path) => (await ask("GET", path)).json();
/** @param {string} path @param {any} body */
export const post = async (path, body) => (await ask("POST", path, body)).json();

/**
 * The events of a streamed answer.
 * @param {string} path @param {any} body @param {AbortSignal} signal
 */
export async function* stream(path, body, signal) {
  const response = await fetch(path, {
    method: "POST", headers: headers("application/json"), body: JSON.stringify({ ...body, stream: true }), signal,
  });
  if (!response.ok) await refuse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** @param {string} text base64 */
export function bytesOf(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
