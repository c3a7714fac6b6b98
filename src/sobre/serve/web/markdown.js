// Markdown to elements, for text that nobody vouches for: no HTML, no images, nothing that loads; links lead out by a
// click alone and only to http, https and mailto. Half-written text renders as far as it goes.
// @ts-check
import { button, element } from "./dom.js";
import { t } from "./i18n.js";
import { formula } from "./math.js";

const MAX_CHARS = 200_000;
const MAX_COLUMNS = 50;

/** The text as elements. @returns {DocumentFragment} */
export function markdown(/** @type {string} */ text) {
  const page = document.createDocumentFragment();
  blocks(page, text.slice(0, MAX_CHARS).split("\n"), 0);
  if (text.length > MAX_CHARS) page.append(element("p", "text", text.slice(MAX_CHARS)));
  return page;
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

function blocks(/** @type {Node & ParentNode} */ into, /** @type {string[]} */ lines, /** @type {number} */ depth) {
  /** @type {string[]} */
  let words = [];
  const endParagraph = () => {
    if (words.length) into.append(inline(element("p"), words.join("\n")));
    words = [];
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = line.match(/^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/);
    const heading = line.match(/^(#{1,6})\s+(.*)$/);
    const display = line.match(/^\s*(\$\$|\\\[)(.*)$/);
    if (!line.trim()) { endParagraph(); at++; continue; }
    if (fence) {
      endParagraph();
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end++;
      into.append(code(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (display) {
      endParagraph();
      const close = display[1] === "$$" ? "$$" : "\\]";
      const tex = [display[2]];
      while (!tex[tex.length - 1].includes(close) && ++at < lines.length) tex.push(lines[at]);
      const [inside, ...after] = tex.join("\n").split(close);
      into.append(formula(inside, true));
      if (after.join(close).trim()) words.push(after.join(close));
      at++;
    } else if (heading) {
      endParagraph();
      into.append(inline(element(`h${Math.min(6, heading[1].length + 2)}`), heading[2]));
      at++;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      endParagraph();
      into.append(element("hr"));
      at++;
    } else if (/^\s*>/.test(line) && depth < 8) {
      endParagraph();
      const inside = [];
      while (at < lines.length && /^\s*>/.test(lines[at])) inside.push(lines[at++].replace(/^\s*> ?/, ""));
      const quote = element("blockquote");
      blocks(quote, inside, depth + 1);
      into.append(quote);
    } else if (ITEM.test(line) && depth < 8) {
      endParagraph();
      at = list(into, lines, at, depth);
    } else if (line.includes("|") && isRule(lines[at + 1] ?? "")) {
      endParagraph();
      at = table(into, lines, at);
    } else {
      words.push(line);
      at++;
    }
  }
  endParagraph();
}

/** A list; lines that are further in belong to the item above them. */
function list(/** @type {ParentNode} */ into, /** @type {string[]} */ lines, /** @type {number} */ at, /** @type {number} */ depth) {
  const first = /** @type {RegExpMatchArray} */ (lines[at].match(ITEM));
  const ordered = /\d/.test(first[2]);
  const made = element(ordered ? "ol" : "ul");
  if (ordered) /** @type {HTMLOListElement} */ (made).start = parseInt(first[2], 10);
  const indent = first[1].length;
  while (at < lines.length) {
    const item = lines[at].match(ITEM);
    if (!item || item[1].length !== indent || /\d/.test(item[2]) !== ordered) break;
    const inside = [item[3]];
    at++;
    while (at < lines.length && (/^\s+\S/.test(lines[at]) ? lines[at].search(/\S/) > indent : !lines[at].trim() && /^\s+\S/.test(lines[at + 1] ?? "") && (lines[at + 1] ?? "").search(/\S/) > indent))
      inside.push(lines[at++].slice(Math.min(indent + 2, lines[at - 1].search(/\S|$/))));
    const li = element("li");
    blocks(li, inside, depth + 1);
    const only = li.children.length === 1 && li.firstElementChild?.tagName === "P" ? li.firstElementChild : null;
    if (only) only.replaceWith(...only.childNodes);
    made.append(li);
  }
  into.append(made);
  return at;
}

/** Whether a table's columns are named above this line; one of very many columns stays text. */
const isRule = (/** @type {string} */ line) =>
  line.length < 40 * MAX_COLUMNS && /^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*$/.test(line);

function table(/** @type {ParentNode} */ into, /** @type {string[]} */ lines, /** @type {number} */ at) {
  const cells = (/** @type {string} */ line) => {
    const all = line.trim().replace(/^\||\|$/g, "").split("|");
    return all.length > MAX_COLUMNS ? [...all.slice(0, MAX_COLUMNS - 1), all.slice(MAX_COLUMNS - 1).join("|")] : all;
  };
  const made = element("table"), wrap = element("div", "scroll-x");
  const row = (/** @type {string} */ line, /** @type {string} */ tag) => {
    const tr = element("tr");
    for (const cell of cells(line)) tr.append(inline(element(tag), cell.trim()));
    return tr;
  };
  made.append(row(lines[at], "th"));
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) made.append(row(lines[at], "td"));
  wrap.append(made);
  into.append(wrap);
  return at;
}

function code(/** @type {string} */ text, /** @type {string} */ language) {
  const made = element("figure", "code"), head = element("figcaption"), pre = element("pre");
  const copy = button(t("copy"), () => {
    void navigator.clipboard.writeText(text).then(() => { copy.textContent = t("copied"); });
  });
  head.append(element("span", "", language), copy);
  pre.append(element("code", "", text));
  pre.tabIndex = 0;
  made.append(head, pre);
  return made;
}

// What may lie between two marks has an end: without one, marks that are never closed take a time that grows by the square.
const INLINE = /(?<!`)(`{1,8})(?!`)([^]{0,1000}?[^`])\1(?!`)|\\\(([^]{1,1000}?)\\\)|\$\$([^]{1,1000}?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)|!?\[([^\]\n]{0,500})\]\(([^()\s]{1,2000})\)|(\*\*|__)(?=\S)([^]{1,1000}?)(?<=\S)\8|(\*|_)(?=\S)([^*_\n]+?)(?<=\S)\10(?!\w)|~~(?=\S)([^~\n]+?)~~/;

/** Text with marks inside a line. @returns {HTMLElement} */
function inline(/** @type {HTMLElement} */ into, /** @type {string} */ text, depth = 0) {
  while (text) {
    const found = depth < 6 ? text.match(INLINE) : null;
    if (!found || found.index === undefined) { into.append(text); break; }
    if (found.index) into.append(text.slice(0, found.index));
    const [whole, tick, inCode, round, doubled, dollar, label, target, , bold, , slanted, struck] = found;
    if (tick) into.append(element("code", "", inCode));
    else if (round ?? doubled ?? dollar) into.append(formula(round ?? doubled ?? dollar, false));
    else if (target !== undefined) into.append(whole.startsWith("!") ? whole : link(label, target));
    else if (bold) into.append(inline(element("strong"), bold, depth + 1));
    else if (slanted) into.append(inline(element("em"), slanted, depth + 1));
    else into.append(inline(element("s"), struck, depth + 1));
    text = text.slice(found.index + whole.length);
  }
  return into;
}

function link(/** @type {string} */ label, /** @type {string} */ target) {
  let url = null;
  try { url = new URL(target); } catch { /* a relative link leads nowhere here */ }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return `[${label}](${target})`;
  const made = /** @type {HTMLAnchorElement} */ (element("a", "", label || target));
  made.href = url.href;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  made.title = url.href;
  return made;
}
