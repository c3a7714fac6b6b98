// The server: requests with the key, server-sent events, errors in words.
// @ts-check
import { byId } from "./dom.js";
import { t } from "./i18n.js";

const KEY = "sobre.key";
const RETRY_MS = 1000;

/** A request with the key, if there is one; asks for the key when the server wants one. @returns {Promise<Response>} */
export async function call(/** @type {string} */ path, /** @type {RequestInit} */ options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey(Boolean(key));
    options.signal?.throwIfAborted();
  }
}

/** The JSON of a GET, or the server's own words as an error; while it loads its model (503), `wait` hears them and it is asked again. */
export async function get(/** @type {string} */ path, /** @type {(words: string) => void} */ wait = () => {}) {
  let response = await call(path);
  while (response.status === 503) {
    wait((await explain(response)).message);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    response = await call(path);
  }
  if (!response.ok) throw await explain(response);
  return response.json();
}

/** POST JSON. */
export const post = (/** @type {string} */ path, /** @type {any} */ body, /** @type {AbortSignal | undefined} */ signal = undefined) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

/** @type {Promise<void> | null} */
let asking = null;

function askForKey(/** @type {boolean} */ wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-title").textContent = t(wasWrong ? "keyWrong" : "keyTitle");
    byId("key").value = "";
    dialog.showModal();
    byId("key-form").onsubmit = () => {
      sessionStorage.setItem(KEY, byId("key").value.trim());
      asking = null;
      resolve(undefined);
    };
    dialog.oncancel = (/** @type {Event} */ event) => event.preventDefault();
  });
  return asking;
}

/** The data of server-sent events. Characters and lines may be cut anywhere by the network. */
export async function* readEvents(/** @type {ReadableStream<Uint8Array>} */ body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(t("closed"));
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // blank lines, and comments that keep the connection open
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

/** What the server said went wrong, with the id of the request. */
export async function explain(/** @type {Response} */ response) {
  const body = await response.json().catch(() => null);
  const id = response.headers.get("x-request-id");
  return new Error(`${body?.error?.message ?? response.status}${id ? ` (${id})` : ""}`);
}
