// TeX to MathML, the part of it that models write: what it does not know stays visible as it is. No HTML, no links.
// @ts-check
import { element } from "./dom.js";

const NS = "http://www.w3.org/1998/Math/MathML";
const DEPTH = 40;
const MAX_CHARS = 5000;
/** @type {Record<string, string>} */
const SIGNS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", iota: "ι", kappa: "κ",
  lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", phi: "φ", varphi: "φ", chi: "χ", psi: "ψ", omega: "ω",
  Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ", Phi: "Φ", Psi: "Ψ", Omega: "Ω",
  times: "×", cdot: "⋅", div: "÷", pm: "±", mp: "∓", le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", equiv: "≡",
  sim: "∼", propto: "∝", infty: "∞", partial: "∂", nabla: "∇", in: "∈", notin: "∉", subset: "⊂", subseteq: "⊆", cup: "∪", cap: "∩",
  emptyset: "∅", forall: "∀", exists: "∃", neg: "¬", land: "∧", lor: "∨", to: "→", rightarrow: "→", leftarrow: "←", Rightarrow: "⇒",
  Leftarrow: "⇐", iff: "⇔", Leftrightarrow: "⇔", implies: "⟹", mapsto: "↦", sum: "∑", prod: "∏", int: "∫", oint: "∮", ldots: "…",
  cdots: "⋯", dots: "…", vdots: "⋮", circ: "∘", bullet: "•", star: "⋆", angle: "∠", perp: "⊥", parallel: "∥", mid: "∣", prime: "′",
  langle: "⟨", rangle: "⟩", lfloor: "⌊", rfloor: "⌋", lceil: "⌈", rceil: "⌉", ell: "ℓ", hbar: "ℏ", quad: "\u2003", qquad: "\u2003\u2003",
  ",": "\u2009", ";": "\u2005", ":": "\u2005", "!": "", " ": " ", "{": "{", "}": "}", "%": "%", "$": "$", "&": "&", "#": "#", _: "_", "|": "‖",
};
const NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max min sup inf gcd det dim deg mod Pr".split(" ");
const ACCENTS = /** @type {Record<string, string>} */ ({ hat: "^", bar: "¯", overline: "¯", vec: "→", tilde: "~", dot: "˙" });
const STYLES = /** @type {Record<string, string>} */ ({ mathbf: "bold", mathrm: "normal", mathit: "italic", boldsymbol: "bold", operatorname: "normal" });
const BIG = new Set(["∑", "∏", "lim", "max", "min", "sup", "inf"]);

function node(/** @type {string} */ tag, /** @type {(Node | string)[]} */ ...inside) {
  const made = document.createElementNS(NS, tag);
  made.append(...inside);
  return made;
}

/** A formula as MathML; `display` puts it on a line of its own. One of more than 5,000 characters stays text. */
export function formula(/** @type {string} */ tex, /** @type {boolean} */ display) {
  if (tex.length > MAX_CHARS) return element("code", "text", tex);
  const math = node("math", row(new Reader(tex), "", 0));
  if (display) math.setAttribute("display", "block");
  math.setAttribute("aria-label", tex);
  return math;
}

class Reader {
  constructor(/** @type {string} */ text) { this.tokens = text.match(/\\[a-zA-Z]+|\\[^]|[0-9]+(?:\.[0-9]+)?|\s+|[^]/g) ?? []; this.at = 0; }
  get next() { return this.tokens[this.at]; }
  take() { return this.tokens[this.at++]; }
  space() { while (this.next !== undefined && /^\s+$/.test(this.next)) this.at++; }
}

/** Everything up to `end`, "" for the end of the text. @returns {Element} */
function row(/** @type {Reader} */ reader, /** @type {string} */ end, /** @type {number} */ depth) {
  const made = node("mrow");
  while (reader.next !== undefined && reader.next !== end) {
    const one = atom(reader, depth);
    if (one) made.append(scripts(reader, one, depth));
  }
  if (end) reader.take();
  return made;
}

function scripts(/** @type {Reader} */ reader, /** @type {Element} */ base, /** @type {number} */ depth) {
  let low, high;
  for (;;) {
    reader.space();
    if (reader.next === "_" && !low) { reader.take(); low = argument(reader, depth); }
    else if (reader.next === "^" && !high) { reader.take(); high = argument(reader, depth); }
    else break;
  }
  const over = BIG.has(base.textContent ?? "");
  if (low && high) return node(over ? "munderover" : "msubsup", base, low, high);
  if (low) return node(over ? "munder" : "msub", base, low);
  return high ? node(over ? "mover" : "msup", base, high) : base;
}

/** What a command is given: a group or one sign. @returns {Element} */
function argument(/** @type {Reader} */ reader, /** @type {number} */ depth) {
  reader.space();
  if (reader.next === undefined) return node("mrow");
  return atom(reader, depth) ?? node("mrow");
}

/** The text of a group, as it is written. */
function raw(/** @type {Reader} */ reader) {
  reader.space();
  if (reader.next !== "{") return reader.take() ?? "";
  reader.take();
  let text = "", open = 1;
  for (;;) {
    const token = reader.take();
    if (token === undefined) return text;
    if (token === "{") open++;
    if (token === "}" && --open === 0) return text;
    text += token;
  }
}

/** @returns {Element | null} */
function atom(/** @type {Reader} */ reader, /** @type {number} */ depth) {
  const token = reader.take() ?? "";
  if (depth > DEPTH) return node("mtext", token);
  if (/^\s+$/.test(token)) return null;
  if (token === "{") return row(reader, "}", depth + 1);
  if (token === "}" || token === "&") return null;
  if (/^[0-9]/.test(token)) return node("mn", token);
  if (/^\p{L}$/u.test(token)) return node("mi", token);
  if (!token.startsWith("\\")) return node("mo", token === "-" ? "−" : token);
  return command(reader, token.slice(1), depth + 1);
}

/** @returns {Element | null} */
function command(/** @type {Reader} */ reader, /** @type {string} */ name, /** @type {number} */ depth) {
  if (name in SIGNS) {
    const sign = SIGNS[name];
    if (!sign.trim()) return sign ? node("mtext", sign) : null;
    return node(/^\p{L}$/u.test(sign) ? "mi" : "mo", sign);
  }
  if (NAMES.includes(name)) return node("mi", name);
  if (["frac", "dfrac", "tfrac"].includes(name)) return node("mfrac", argument(reader, depth), argument(reader, depth));
  if (name === "binom") {
    const over = node("mfrac", argument(reader, depth), argument(reader, depth));
    over.setAttribute("linethickness", "0");
    return node("mrow", node("mo", "("), over, node("mo", ")"));
  }
  if (name === "sqrt") {
    reader.space();
    if (reader.next !== "[") return node("msqrt", argument(reader, depth));
    reader.take();
    const root = row(reader, "]", depth);
    return node("mroot", argument(reader, depth), root);
  }
  if (name === "left" || name === "right") {
    reader.space();
    const mark = (reader.take() ?? "").replace(/^\\/, "");
    return mark === "." ? null : node("mo", SIGNS[mark] ?? mark);
  }
  if (name === "text" || name === "textbf" || name === "mbox") return node("mtext", raw(reader));
  if (name in ACCENTS) {
    const over = node("mover", argument(reader, depth), node("mo", ACCENTS[name]));
    over.setAttribute("accent", "true");
    return over;
  }
  if (name in STYLES) {
    const inside = argument(reader, depth);
    for (const one of [inside, ...inside.querySelectorAll("mi")]) if (STYLES[name] === "normal") one.setAttribute("mathvariant", "normal");
    if (STYLES[name] === "bold") inside.classList.add("bold");
    return inside;
  }
  if (name === "boxed") {
    const inside = node("mrow", argument(reader, depth));
    inside.classList.add("boxed");
    return inside;
  }
  if (name === "begin") return table(reader, raw(reader), depth);
  return node("mtext", `\\${name}`);
}

/** Matrices, cases and aligned lines. */
function table(/** @type {Reader} */ reader, /** @type {string} */ kind, /** @type {number} */ depth) {
  const made = node("mtable");
  let line = node("mtr"), cell = node("mtd");
  const endCell = () => { line.append(cell); cell = node("mtd"); };
  while (reader.next !== undefined) {
    if (reader.next === "\\end") { reader.take(); raw(reader); break; }
    if (reader.next === "&") { reader.take(); endCell(); }
    else if (reader.next === "\\\\") { reader.take(); endCell(); made.append(line); line = node("mtr"); }
    else {
      const one = atom(reader, depth);
      if (one) cell.append(scripts(reader, one, depth));
    }
  }
  endCell();
  made.append(line);
  const marks = /** @type {Record<string, string[]>} */ ({ pmatrix: ["(", ")"], bmatrix: ["[", "]"], vmatrix: ["|", "|"], cases: ["{", ""] })[kind];
  return marks ? node("mrow", node("mo", marks[0]), made, node("mo", marks[1])) : made;
}
