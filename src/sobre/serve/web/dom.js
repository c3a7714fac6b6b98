// Making and finding elements. Text reaches the page as text alone, never as HTML.
// @ts-check

/** The element of the page with this id. @returns {any} */
export const byId = (/** @type {string} */ id) => document.getElementById(id);

/** A new element with text in it. */
export function element(/** @type {string} */ tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** A button with a word on it. */
export function button(/** @type {string} */ text, /** @type {() => void} */ press, className = "small") {
  const made = /** @type {HTMLButtonElement} */ (element("button", className, text));
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

/** Tell a screen reader. */
export const say = (/** @type {string} */ text) => { byId("status").textContent = text; };
