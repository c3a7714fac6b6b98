// Conversations, kept in this browser. A chat is a tree: an edited question or an answer made anew is a sibling of the
// old one, and `leaf` is the end of the branch on show.
// @ts-check

/** @typedef {{id: string, parent: string | null, role: string, content: string, reasoning?: string, usage?: any, reason?: string, ms?: number, thoughtMs?: number, model?: string, error?: string, experts?: any}} Node */
/** @typedef {{id: string, title: string, at: number, leaf: string | null, nodes: Record<string, Node>}} Chat */

const PLACE = "sobre.chats";
const newId = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

/** All chats, the newest first. @returns {Chat[]} */
export function load() {
  try {
    return JSON.parse(localStorage.getItem(PLACE) ?? "[]").filter(fits);
  } catch {
    return [];
  }
}

/** Whether this is a chat: one that is none does not take the others with it. */
function fits(/** @type {any} */ chat) {
  try {
    return Boolean(check([chat]));
  } catch {
    return false;
  }
}

/** Keep the chats; false when the browser has no room. */
export function keep(/** @type {Chat[]} */ chats) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(chats.filter((chat) => chat.leaf)));
    return true;
  } catch {
    return false;
  }
}

/** An empty chat. @returns {Chat} */
export const begin = () => ({ id: newId(), title: "", at: Date.now(), leaf: null, nodes: {} });

/** Add a turn after `parent` and make it the end of the branch on show. @returns {Node} */
export function add(/** @type {Chat} */ chat, /** @type {string | null} */ parent, /** @type {string} */ role, /** @type {string} */ content) {
  const node = { id: newId(), parent, role, content };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  chat.at = Date.now();
  if (!chat.title && role === "user") chat.title = content.slice(0, 60);
  return node;
}

/** The branch on show, from its beginning. @returns {Node[]} */
export function branch(/** @type {Chat} */ chat, leaf = chat.leaf) {
  const found = [];
  for (let at = leaf; at; at = chat.nodes[at].parent) found.unshift(chat.nodes[at]);
  return found;
}

/** The versions of a turn, itself among them. @returns {Node[]} */
export const versions = (/** @type {Chat} */ chat, /** @type {Node} */ node) =>
  Object.values(chat.nodes).filter((one) => one.parent === node.parent && one.role === node.role);

/** Show another version: its newest branch. */
export function show(/** @type {Chat} */ chat, /** @type {Node} */ node) {
  let at = node;
  for (;;) {
    const below = Object.values(chat.nodes).filter((one) => one.parent === at.id);
    const last = below.at(-1);
    if (!last) break;
    at = last;
  }
  chat.leaf = at.id;
}

/** What the model is sent of a branch: answers without their thoughts, which it would not be shown. */
export const messages = (/** @type {Node[]} */ nodes, /** @type {string} */ system) => [
  ...(system ? [{ role: "system", content: system }] : []),
  ...nodes.filter((node) => node.content).map(({ role, content }) => ({ role, content })),
];

const MAX_EXPERTS = 10000;
/** Parts of a turn that need not be there. @type {Record<string, string>} */
const OPTIONAL = { reasoning: "string", reason: "string", model: "string", error: "string", ms: "number", thoughtMs: "number" };

const isTurn = (/** @type {any} */ node) =>
  ["user", "assistant"].includes(node.role) && typeof node.content === "string" &&
  Object.entries(OPTIONAL).every(([name, type]) => node[name] === undefined || typeof node[name] === type) &&
  (node.usage === undefined || isUsage(node.usage)) && (node.experts === undefined || isExperts(node.experts));

const isUsage = (/** @type {any} */ usage) =>
  [usage?.completion_tokens, usage?.total_tokens, usage?.completion_tokens_details?.reasoning_tokens].every(Number.isFinite) &&
  (usage.cost_usd == null || Number.isFinite(usage.cost_usd)) && ["string", "undefined"].includes(typeof usage.cost_basis);

const isExperts = (/** @type {any} */ data) =>
  Number.isInteger(data?.n_experts) && data.n_experts > 0 && data.n_experts <= MAX_EXPERTS &&
  Array.isArray(data.tokens) && data.tokens.every((/** @type {any} */ token) => typeof token === "string") &&
  Array.isArray(data.layers) && data.layers.length > 0 && data.layers.every((/** @type {any} */ layer) =>
    Number.isInteger(layer?.layer) && Array.isArray(layer.experts) && layer.experts.length === data.tokens.length &&
    layer.experts.every((/** @type {any} */ chosen) => Array.isArray(chosen) && chosen.every(Number.isInteger)));

/** Only what has the form of chats; raises on anything else. @returns {Chat[]} */
export function check(/** @type {any} */ chats) {
  if (!Array.isArray(chats)) throw new Error("no list");
  for (const chat of chats) {
    if (typeof chat?.id !== "string" || typeof chat.title !== "string" || typeof chat.nodes !== "object") throw new Error("no chat");
    for (const [id, node] of Object.entries(/** @type {Record<string, any>} */ (chat.nodes))) {
      if (node.id !== id || !isTurn(node)) throw new Error("no turn");
      if (node.parent !== null && !Object.hasOwn(chat.nodes, node.parent)) throw new Error("no turn before it");
    }
    if (chat.leaf !== null && !Object.hasOwn(chat.nodes, chat.leaf)) throw new Error("no leaf");
    for (const id of Object.keys(chat.nodes)) { // a tree has no circles
      let steps = 0;
      for (let at = id; at; at = chat.nodes[at].parent) if (++steps > 10000) throw new Error("a circle");
    }
  }
  return chats;
}
