// What the reader may set: kept in this browser, sent with each question.
// @ts-check
import { byId } from "./dom.js";
import { languages, preferred, speak } from "./i18n.js";

const PLACE = "sobre.settings";
const FIRST = { think: true, budget: "", temperature: "", maxTokens: "", system: "", language: preferred(), theme: "auto", experts: false };

/** @type {typeof FIRST} */
export const settings = { ...FIRST };

/** Read what is kept, show it in the dialog, and follow its changes. */
export function beginSettings(/** @type {() => void} */ changed) {
  try {
    Object.assign(settings, JSON.parse(localStorage.getItem(PLACE) ?? "{}"));
  } catch { /* what cannot be read is not there */ }
  for (const one of languages) byId("set-language").append(new Option({ en: "English", fr: "Français", zh: "中文" }[one] ?? one, one));
  for (const name of Object.keys(FIRST)) {
    const input = byId(`set-${name}`);
    const value = /** @type {any} */ (settings)[name];
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
    input.addEventListener("input", () => {
      /** @type {any} */ (settings)[name] = input.type === "checkbox" ? input.checked : input.value;
      localStorage.setItem(PLACE, JSON.stringify(settings));
      apply();
      changed();
    });
  }
  apply();
}

function apply() {
  speak(settings.language);
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

/** The settings as fields of a request. Empty ones are the server's own. */
export function fields(/** @type {boolean} */ hasExperts) {
  const number = (/** @type {string} */ text) => (text.trim() === "" ? undefined : Number(text));
  return {
    thinking: { type: settings.think ? "enabled" : "disabled" },
    thinking_token_budget: settings.think ? number(settings.budget) : undefined,
    temperature: number(settings.temperature),
    max_tokens: number(settings.maxTokens),
    return_experts: (hasExperts && settings.experts) || undefined,
  };
}
