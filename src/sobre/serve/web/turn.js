// One turn on the page: a question, or an answer with its block of thought, clock and figures.
// @ts-check
import { versions } from "./chats.js";
import { button, element } from "./dom.js";
import { expertView } from "./experts.js";
import { counted, dollars, seconds } from "./format.js";
import { t } from "./i18n.js";
import { markdown } from "./markdown.js";

const TAGS = ["<answer>", "</answer>"]; // how models trained here mark an answer; not shown
const REDRAW_MS = 80;

/** @typedef {import("./chats.js").Node} Node */
/** @typedef {{edit: (node: Node, text: string) => void, again: (node: Node) => void, show: (node: Node) => void, answerNow: (() => void) | null}} Acts */

/** The answer without its marks, and without what may be the beginning of one. */
export function withoutTags(/** @type {string} */ text, whole = true) {
  for (const tag of TAGS) text = text.replaceAll(tag, "");
  if (whole) return text;
  for (const tag of TAGS) {
    for (let n = tag.length - 1; n > 0; n--) if (text.endsWith(tag.slice(0, n))) return text.slice(0, -n);
  }
  return text;
}

/** A question, with its versions and a way to edit it. */
export function questionItem(/** @type {import("./chats.js").Chat} */ chat, /** @type {Node} */ node, /** @type {Acts} */ acts) {
  const item = element("li", "user");
  const text = element("p", "text bubble", node.content);
  const tools = element("div", "tools");
  tools.append(...switcher(chat, node, acts), button(t("edit"), () => edit(item, node, acts)));
  item.append(text, tools);
  return item;
}

function edit(/** @type {HTMLElement} */ item, /** @type {Node} */ node, /** @type {Acts} */ acts) {
  const before = [...item.childNodes];
  const box = /** @type {HTMLTextAreaElement} */ (element("textarea", "edit"));
  const back = () => item.replaceChildren(...before);
  box.value = node.content;
  box.rows = Math.min(8, node.content.split("\n").length + 1);
  box.setAttribute("aria-label", t("edit"));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); back(); }
  });
  const tools = element("div", "tools");
  tools.append(button(t("cancel"), back), button(t("save"), () => { if (box.value.trim()) acts.edit(node, box.value.trim()); }));
  item.replaceChildren(box, tools);
  box.focus();
}

/** ‹ 1 / 2 › between the versions of a turn. */
function switcher(/** @type {import("./chats.js").Chat} */ chat, /** @type {Node} */ node, /** @type {Acts} */ acts) {
  const all = versions(chat, node);
  if (all.length < 2) return [];
  const at = all.indexOf(node);
  const step = (/** @type {number} */ by, /** @type {string} */ sign, /** @type {string} */ label) => {
    const made = button(sign, () => acts.show(all[at + by]));
    made.setAttribute("aria-label", t(label));
    made.disabled = !all[at + by];
    return made;
  };
  return [step(-1, "‹", "previous"), element("span", "", `${at + 1} ${t("of")} ${all.length}`), step(1, "›", "next")];
}

/** An answer: while it is being written, and as it is kept. */
export class AnswerItem {
  constructor(/** @type {import("./chats.js").Chat} */ chat, /** @type {Node} */ node, /** @type {Acts} */ acts) {
    this.chat = chat;
    this.node = node;
    this.acts = acts;
    this.item = element("li", "assistant");
    this.details = /** @type {HTMLDetailsElement} */ (element("details"));
    this.label = element("span");
    const summary = element("summary");
    summary.append(this.label);
    this.thought = element("p", "text thought");
    this.thought.tabIndex = 0;
    this.thought.setAttribute("aria-label", t("thought"));
    this.details.append(summary, this.thought);
    this.answer = element("div", "answer");
    this.item.append(this.details, this.answer);
    this.nThought = this.nAnswer = 0;
    this.firstAt = 0;
    this.drawAgainAt = 0;
  }

  /** Begin to write. */
  start() {
    this.began = performance.now();
    this.details.classList.add("thinking");
    this.details.open = true;
    const answerNow = this.acts.answerNow;
    if (answerNow) {
      this.now = button(t("answerNow"), answerNow, "quiet now");
      this.now.hidden = true;
      this.details.append(this.now);
    }
    this.label.textContent = t("waiting");
    this.clock = setInterval(() => this.tick(), 100);
  }

  take(/** @type {any} */ delta) {
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (!thought && !delta.content) return;
    this.firstAt ||= performance.now();
    if (thought) {
      const follow = this.thought.scrollHeight - this.thought.scrollTop - this.thought.clientHeight < 30;
      this.node.reasoning = (this.node.reasoning ?? "") + thought;
      this.nThought += 1;
      if (this.now) this.now.hidden = false;
      this.thought.append(thought);
      if (follow) this.thought.scrollTop = this.thought.scrollHeight;
      return;
    }
    if (this.nAnswer === 0) this.endThought();
    this.node.content += delta.content;
    this.nAnswer += 1;
    if (performance.now() > this.drawAgainAt) this.draw(false);
  }

  /** Draw the answer, and not again before four fifths of the time are left for everything else. */
  draw(/** @type {boolean} */ whole) {
    const began = performance.now();
    this.answer.replaceChildren(markdown(withoutTags(this.node.content, whole)));
    const end = performance.now();
    this.drawAgainAt = end + Math.max(REDRAW_MS, 4 * (end - began));
  }

  tick() {
    if (!this.details.classList.contains("thinking")) return;
    const time = seconds(performance.now() - (this.began ?? 0));
    this.label.textContent = this.nThought ? `${t("thinking")} ${time}, ${counted(this.nThought)}` : `${t("waiting")} ${time}`;
  }

  endThought() {
    if (!this.details.classList.contains("thinking")) return;
    this.node.thoughtMs = performance.now() - (this.began ?? 0);
    this.details.classList.remove("thinking");
    this.now?.remove();
    this.nameThought(this.nThought);
  }

  nameThought(/** @type {number} */ n) {
    this.label.textContent = `${t("thoughtFor")} ${seconds(this.node.thoughtMs ?? 0)}, ${counted(n)}`;
    this.details.open = !this.node.content && Boolean(this.node.reasoning);
    this.details.hidden = !this.node.reasoning?.trim();
  }

  /** The answer is over; `node.usage` is what the server last said it used. */
  finish(/** @type {string | null} */ reason) {
    clearInterval(this.clock);
    this.endThought();
    this.node.reason = reason ?? undefined;
    const n = this.node.usage?.completion_tokens ?? this.nThought + this.nAnswer;
    const writing = performance.now() - this.firstAt;
    if (this.firstAt && n > 1) this.node.ms = writing / (n - 1);
    this.settle();
  }

  /** Show a kept answer. */
  settle() {
    const { node } = this;
    this.thought.textContent = node.reasoning ?? "";
    this.nameThought(node.usage?.completion_tokens_details.reasoning_tokens ?? this.nThought);
    this.draw(true);
    const figures = element("p", "figures", this.figures());
    if (node.usage?.cost_basis) figures.title = node.usage.cost_basis;
    const copy = button(t("copy"), () => {
      void navigator.clipboard.writeText(withoutTags(node.content)).then(() => { copy.textContent = t("copied"); });
    });
    const tools = element("div", "tools");
    tools.append(...switcher(this.chat, node, this.acts), copy, button(t("regenerate"), () => this.acts.again(node)));
    this.item.append(figures);
    if (node.experts) this.item.append(expertView(node.experts));
    if (node.error) this.problem(node.error);
    this.item.append(tools);
  }

  figures() {
    const { node } = this;
    const parts = [];
    if (node.model) parts.push(node.model);
    if (node.usage) parts.push(counted(node.usage.completion_tokens));
    if (node.ms) parts.push(`${(1000 / node.ms).toFixed(0)} ${t("tokensPerS")}`);
    if (node.usage?.cost_usd != null) parts.push(dollars(node.usage.cost_usd));
    const ends = /** @type {Record<string, string>} */ ({ length: "cutOff", repetition: "circles", stopped: "stopped" });
    if (node.reason && node.reason in ends) parts.push(t(ends[node.reason]));
    if (node.reason === "stop" && !withoutTags(node.content).trim()) parts.push(t("noAnswer"));
    return parts.join(" · ");
  }

  problem(/** @type {string} */ message) {
    const line = element("p", "problem", message);
    line.setAttribute("role", "alert");
    this.item.append(line);
  }

  fail(/** @type {string} */ message) {
    this.node.error = message;
    this.finish(null);
  }
}
