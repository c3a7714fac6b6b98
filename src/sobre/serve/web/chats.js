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
    return check(JSON.parse(localStorage.getItem(PLACE) ?? "[]"));
  } catch {
    return [];
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

/** Only what has the form of chats; raises on anything else. @returns {Chat[]} */
export function check(/** @type {any} */ chats) {
  if (!Array.isArray(chats)) throw new Error("no list");
  for (const chat of chats) {
    if (typeof chat?.id !== "string" || typeof chat.nodes !== "object") throw new Error("no chat");
    for (const [id, node] of Object.entries(/** @type {Record<string, any>} */ (chat.nodes))) {
      const fits = node.id === id && ["user", "assistant"].includes(node.role) && typeof node.content === "string";
      if (!fits || (node.parent !== null && !(node.parent in chat.nodes))) throw new Error("no turn");
    }
    if (chat.leaf !== null && !(chat.leaf in chat.nodes)) throw new Error("no leaf");
    for (const id of Object.keys(chat.nodes)) { // a tree has no circles
      let steps = 0;
      for (let at = id; at; at = chat.nodes[at].parent) if (++steps > 10000) throw new Error("a circle");
    }
  }
  return chats;
}
