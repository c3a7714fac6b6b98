// The page begins here: models and examples from the server, chats from this browser, and what every button does.
// @ts-check
import * as chats from "./chats.js";
import { byId, element } from "./dom.js";
import { dollars } from "./format.js";
import { t } from "./i18n.js";
import { Pane } from "./pane.js";
import { beginSettings } from "./settings.js";
import { get } from "./wire.js";

/** @type {any[]} */
let models = [];
let kept = chats.load();
const first = new Pane(byId("turns"), changed);
const second = new Pane(byId("turns-2"), changed);
const panes = () => (byId("pane-2").hidden ? [first] : [first, second]);
const running = () => panes().some((pane) => pane.running);

function refresh() {
  const box = byId("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  const on = running();
  byId("send").disabled = on || !models.length || !box.value.trim();
  byId("send").hidden = on;
  byId("stop").hidden = !on;
  byId("scroll").setAttribute("aria-busy", String(on));
  byId("welcome").hidden = Boolean(first.chat.leaf);
  const figures = panes().map((pane) => pane.figures());
  const spent = figures.map((one) => one.spent).filter((usd) => usd !== null);
  byId("total").textContent = spent.length ? dollars(spent.reduce((sum, usd) => sum + usd, 0)) : "";
  byId("total").title = t("spent");
  byId("total").hidden = !spent.length;
  const { used, room } = figures.reduce((a, b) => (b.used / (b.room || 1) > a.used / (a.room || 1) ? b : a)); // the fuller
  byId("context").hidden = !used || !room;
  byId("context").value = used;
  byId("context").max = room || 1;
  byId("context").title = `${t("context")}: ${used} ${t("of")} ${room}`;
  byId("context").setAttribute("aria-label", byId("context").title);
}

function changed() {
  refresh();
  keep();
}

/** Keep the chats; those on show, of both panes, come first. */
function keep() {
  const shown = panes().map((pane) => pane.chat).filter((chat) => chat.leaf);
  kept = [...shown, ...kept.filter((chat) => !shown.some((one) => one.id === chat.id))];
  byId("storage").hidden = chats.keep(kept);
  byId("chats").replaceChildren(...kept.map((chat) => {
    const item = element("li");
    const open = /** @type {HTMLButtonElement} */ (element("button", "chat", chat.title || t("untitled")));
    open.type = "button";
    if (models.length > 1) open.append(element("small", "", chats.branch(chat).findLast((node) => node.model)?.model));
    if (shown.includes(chat)) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => {
      byId("side").close();
      if (second.chat === chat) second.open(chats.begin()); // a chat is on show once
      first.open(chat);
    });
    item.append(open);
    return item;
  }));
}

async function submit(text = byId("question").value.trim()) {
  if (!text || running() || !models.length) return;
  byId("question").value = "";
  const hadFocus = document.activeElement;
  await Promise.all(panes().map((pane) => pane.ask(text)));
  if (hadFocus === byId("question") || document.activeElement === document.body) byId("question").focus();
}

function startAnew() {
  for (const pane of [first, second]) pane.open(chats.begin());
  byId("side").close();
  byId("question").focus();
}

function chooseModel(/** @type {Pane} */ pane, /** @type {string} */ id) {
  const about = models.find((one) => one.id === id);
  pane.model = about.id;
  pane.maxLen = about.max_model_len ?? 0;
  pane.hasExperts = Boolean(about.experts);
  pane.endsThoughts = about.answer_now !== false; // another engine behind the server cannot
  byId("experts-row").hidden = !models.some((one) => one.experts);
  if (pane !== first) return;
  const price = about.pricing?.usd_per_million_output_tokens;
  byId("price").textContent = price == null ? "" : `${dollars(price)} ${t("perMillion")}`;
  document.title = `${about.id} · sobre chat`;
  refresh();
}

function compare(/** @type {boolean} */ on) {
  second.stop();
  byId("pane-2").hidden = !on;
  document.body.classList.toggle("comparing", on);
  byId("compare").setAttribute("aria-pressed", String(on));
  second.open(chats.begin());
}

function exportChats() {
  const link = /** @type {HTMLAnchorElement} */ (element("a"));
  link.href = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 1)], { type: "application/json" }));
  link.download = "sobre-chats.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importChats(/** @type {File} */ file) {
  byId("import-problem").hidden = true;
  try {
    const found = chats.check(JSON.parse(await file.text()));
    const ids = new Set(found.map((chat) => chat.id));
    for (const pane of [first, second]) pane.open(chats.begin());
    kept = [...found, ...kept.filter((chat) => !ids.has(chat.id))];
    keep();
  } catch {
    byId("import-problem").hidden = false;
  }
}

function wire() {
  byId("ask").addEventListener("submit", (/** @type {Event} */ event) => { event.preventDefault(); void submit(); });
  byId("question").addEventListener("input", refresh);
  byId("question").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends a word being composed
    event.preventDefault();
    void submit();
  });
  const stop = () => panes().forEach((pane) => pane.stop());
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  });
  byId("restart").addEventListener("click", startAnew);
  byId("open-side").addEventListener("click", () => byId("side").showModal());
  byId("open-settings").addEventListener("click", () => byId("settings").showModal());
  byId("compare").addEventListener("click", () => compare(byId("pane-2").hidden));
  byId("model").addEventListener("input", () => chooseModel(first, byId("model").value));
  byId("model-2").addEventListener("input", () => chooseModel(second, byId("model-2").value));
  byId("export").addEventListener("click", exportChats);
  byId("import").addEventListener("click", () => {
    byId("import-file").value = ""; // the same file may be chosen again, mended
    byId("import-file").click();
  });
  byId("import-file").addEventListener("change", () => void importChats(byId("import-file").files[0]));
  byId("delete").addEventListener("click", () => {
    const gone = panes().map((pane) => pane.chat.id);
    startAnew();
    kept = kept.filter((chat) => !gone.includes(chat.id));
    keep();
  });
  for (const dialog of document.querySelectorAll("dialog.closable")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) /** @type {any} */ (dialog).close(); });
  }
}

function addExample(/** @type {{task: string, lang: string, prompt: string}} */ example) {
  const item = element("li"), press = /** @type {HTMLButtonElement} */ (element("button"));
  press.type = "button";
  const text = element("span", "", example.prompt);
  text.lang = example.lang;
  press.append(element("small", "", example.task.replaceAll("_", " ")), text);
  press.addEventListener("click", () => void submit(example.prompt));
  item.append(press);
  byId("examples").append(item);
}

function trouble(/** @type {string} */ words) {
  byId("trouble").textContent = words;
  byId("trouble").hidden = !words;
}

async function begin() {
  try {
    models = (await get("v1/models", trouble)).data;
    trouble("");
    for (const id of ["model", "model-2"]) byId(id).replaceChildren(...models.map((one) => new Option(one.id, one.id)));
    chooseModel(first, models[0].id);
    byId("model-2").value = models.at(-1).id;
    chooseModel(second, models.at(-1).id);
    keep(); // the list of chats names models where there are several
    for (const example of (await get("v1/sobre/examples")).data) addExample(example);
  } catch (error) {
    trouble(error instanceof Error ? error.message : String(error));
  }
}

beginSettings(() => { first.draw(); second.draw(); });
wire();
first.draw();
void begin();
