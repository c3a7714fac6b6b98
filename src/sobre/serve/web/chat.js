// The chat page: asks POST /v1/chat/completions of this server and shows the thought, the answer and what they cost.
// Text reaches the page through textContent alone. Nothing is stored but the key, in sessionStorage, if one is asked for.
// @ts-check

const KEY = "sobre.key";
const TAGS = ["<answer>", "</answer>"]; // how models trained here mark an answer; not shown
const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));

/** @type {{role: string, content: string}[]} */
let messages = [];
/** @type {AbortController | null} */
let running = null;
let model = "";
let spentUsd = 0;

// ---- the wire ----

/** A request with the key, if there is one; asks for the key when the server wants one. @returns {Promise<Response>} */
async function call(/** @type {string} */ path, /** @type {RequestInit} */ options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    await askForKey(Boolean(key));
    options.signal?.throwIfAborted();
  }
}

function askForKey(/** @type {boolean} */ wasWrong) {
  const dialog = byId("key-dialog");
  byId("key-title").textContent = wasWrong ? "That key is not accepted" : "This server asks for a key";
  byId("key").value = "";
  dialog.showModal();
  return /** @type {Promise<void>} */ (new Promise((resolve) => {
    byId("key-form").onsubmit = () => {
      sessionStorage.setItem(KEY, byId("key").value.trim());
      resolve();
    };
    dialog.oncancel = (/** @type {Event} */ event) => event.preventDefault();
  }));
}

/** The data of server-sent events. Characters and lines may be cut anywhere by the network. */
async function* readEvents(/** @type {ReadableStream<Uint8Array>} */ body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection closed before the answer was complete.");
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // blank lines, and comments that keep the connection open
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function explain(/** @type {Response} */ response) {
  const body = await response.json().catch(() => null);
  const id = response.headers.get("x-request-id");
  return new Error(`${body?.error?.message ?? `The server answered ${response.status}.`}${id ? ` (${id})` : ""}`);
}

// ---- what is shown ----

function element(/** @type {string} */ tag, /** @type {string} */ className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

const scroller = byId("scroll");
const atBottom = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
const plural = (/** @type {number} */ n, /** @type {string} */ noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const seconds = (/** @type {number} */ ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
const dollars = (/** @type {number} */ usd) => (usd === 0 ? "$0" : `$${usd.toPrecision(2).replace(/e-(\d+)/, "e−$1")}`);
const say = (/** @type {string} */ text) => { byId("status").textContent = text; };

/** The answer without its marks, and without what may be the beginning of one. */
function withoutTags(/** @type {string} */ text) {
  for (const tag of TAGS) text = text.replaceAll(tag, "");
  for (const tag of TAGS) {
    for (let n = tag.length - 1; n > 0; n--) if (text.endsWith(tag.slice(0, n))) return text.slice(0, -n);
  }
  return text;
}

/** One answer on the page: a block of thought with a clock, the answer, its figures. */
class Turn {
  constructor() {
    this.item = element("li", "assistant");
    this.details = /** @type {HTMLDetailsElement} */ (element("details", "thinking"));
    this.details.open = true;
    this.label = element("span", "", "Thinking…");
    const summary = element("summary", "");
    summary.append(this.label);
    this.thought = element("p", "text thought");
    this.thought.tabIndex = 0;
    this.thought.setAttribute("aria-label", "Thought");
    this.details.append(summary, this.thought);
    this.answer = element("p", "text answer");
    this.item.append(this.details, this.answer);
    this.reasoning = "";
    this.content = "";
    this.nThought = 0;
    this.nAnswer = 0;
    this.began = performance.now();
    this.firstAt = 0;
    this.thoughtMs = 0;
    this.clock = setInterval(() => this.tick(), 100);
    byId("turns").append(this.item);
  }

  take(/** @type {any} */ delta) {
    if (!delta.reasoning_content && !delta.content) return;
    const follow = atBottom();
    this.firstAt ||= performance.now();
    if (delta.reasoning_content) {
      const followThought = this.thought.scrollHeight - this.thought.scrollTop - this.thought.clientHeight < 30;
      this.reasoning += delta.reasoning_content;
      this.nThought += 1;
      this.thought.textContent = this.reasoning;
      if (followThought) this.thought.scrollTop = this.thought.scrollHeight;
    } else {
      if (this.nAnswer === 0) this.endThought();
      this.content += delta.content;
      this.nAnswer += 1;
      this.answer.textContent = withoutTags(this.content);
    }
    if (follow) scroller.scrollTop = scroller.scrollHeight;
  }

  tick() {
    if (!this.details.classList.contains("thinking")) return;
    const time = seconds(performance.now() - this.began);
    this.label.textContent = this.nThought ? `Thinking… ${time}, ${plural(this.nThought, "token")}` : `Waiting… ${time}`;
  }

  endThought() {
    if (!this.details.classList.contains("thinking")) return;
    this.thoughtMs = performance.now() - this.began;
    this.details.classList.remove("thinking");
    this.nameThought(this.nThought);
    if (this.reasoning.trim()) this.details.open = false;
    else this.details.hidden = true;
  }

  nameThought(/** @type {number} */ n) {
    this.label.textContent = `Thought for ${seconds(this.thoughtMs)}, ${plural(n, "token")}`;
  }

  finish(/** @type {string | null} */ reason, /** @type {any} */ usage) {
    clearInterval(this.clock);
    this.endThought();
    this.answer.textContent = this.content.replaceAll(TAGS[0], "").replaceAll(TAGS[1], "");
    const figures = [];
    const n = usage?.completion_tokens ?? this.nThought + this.nAnswer;
    if (usage) this.nameThought(usage.completion_tokens_details.reasoning_tokens);
    if (n) figures.push(plural(n, "token"));
    const writing = (performance.now() - this.firstAt) / 1000;
    if (this.firstAt && n > 1 && writing > 0) figures.push(`${((n - 1) / writing).toFixed(0)} tokens/s`);
    if (usage?.cost_usd != null) figures.push(dollars(usage.cost_usd));
    if (reason === "length") figures.push("cut off at the length limit");
    if (reason === "stopped") figures.push("stopped");
    const line = element("p", "figures", figures.join(" · "));
    if (usage?.cost_basis) line.title = usage.cost_basis;
    this.item.append(line);
    if (!this.content && this.reasoning) this.details.open = true;
    if (atBottom()) scroller.scrollTop = scroller.scrollHeight;
  }

  fail(/** @type {string} */ message) {
    clearInterval(this.clock);
    this.endThought();
    const line = element("p", "problem", message);
    line.setAttribute("role", "alert");
    this.item.append(line);
    line.scrollIntoView({ block: "nearest" });
  }
}

// ---- a question ----

async function ask(/** @type {string} */ question) {
  byId("welcome").hidden = true;
  byId("restart").hidden = false;
  const conversation = messages; // a new chat may begin while this answer is being stopped
  conversation.push({ role: "user", content: question });
  byId("turns").append(element("li", "user text", question));
  const turn = new Turn();
  scroller.scrollTop = scroller.scrollHeight;
  running = new AbortController();
  showRunning(true);
  say("Thinking.");
  try {
    await stream(turn, conversation, running.signal);
  } catch (error) {
    if (running?.signal.aborted) {
      turn.finish("stopped", null);
      say("Stopped.");
    } else {
      turn.fail(error instanceof Error ? error.message : String(error));
    }
  }
  // The answer joins the conversation without its thought, which the model is not shown again; a question without an
  // answer leaves it, so that it can be asked anew.
  if (turn.content) conversation.push({ role: "assistant", content: turn.content });
  else conversation.pop();
  running = null;
  showRunning(false);
}

async function stream(/** @type {Turn} */ turn, /** @type {{role: string, content: string}[]} */ messages,
  /** @type {AbortSignal} */ signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok || !response.body) throw await explain(response);
  let reason = null;
  let usage = null;
  for await (const event of readEvents(response.body)) {
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    for (const choice of event.choices) {
      turn.take(choice.delta);
      reason = choice.finish_reason ?? reason;
    }
  }
  turn.finish(reason, usage);
  if (usage?.cost_usd != null) {
    spentUsd += usage.cost_usd;
    byId("total").textContent = dollars(spentUsd);
    byId("total").hidden = false;
  }
  say(turn.content ? `Answer: ${withoutTags(turn.content)}` : "The thought was cut off before an answer.");
}

function showRunning(/** @type {boolean} */ on) {
  const hadFocus = document.activeElement === byId("stop") || document.activeElement === document.body;
  byId("send").hidden = on;
  byId("stop").hidden = !on;
  scroller.setAttribute("aria-busy", String(on));
  if (!on && hadFocus) byId("question").focus();
  refresh();
}

function refresh() {
  const box = byId("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
  byId("send").disabled = running !== null || !model || !box.value.trim();
}

// ---- the page begins ----

function submit() {
  const box = byId("question");
  const question = box.value.trim();
  if (!question || running || !model) return;
  box.value = "";
  refresh();
  void ask(question);
}

byId("ask").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  submit();
});
byId("question").addEventListener("input", refresh);
byId("question").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends a word being composed
  event.preventDefault();
  submit();
});
byId("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("restart").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("turns").replaceChildren();
  byId("welcome").hidden = false;
  byId("restart").hidden = true;
  byId("question").focus();
});

async function begin() {
  try {
    const response = await call("v1/models");
    if (!response.ok) throw await explain(response);
    const about = (await response.json()).data[0];
    model = about.id;
    const price = about.pricing?.usd_per_million_output_tokens;
    byId("model").textContent = price == null ? model : `${model} · ${dollars(price)} per million tokens`;
    document.title = `${model} · sobre chat`;
    refresh();
    const examples = await (await call("v1/sobre/examples")).json();
    for (const example of examples.data) addExample(example);
  } catch (error) {
    byId("model").textContent = error instanceof Error ? error.message : String(error);
    byId("model").classList.add("problem");
  }
}

function addExample(/** @type {{task: string, lang: string, prompt: string}} */ example) {
  const item = element("li", "");
  const button = element("button", "");
  button.setAttribute("type", "button");
  const text = element("span", "", example.prompt);
  text.lang = example.lang;
  button.append(element("small", "", example.task.replaceAll("_", " ")), text);
  button.addEventListener("click", () => { if (!running) void ask(example.prompt); });
  item.append(button);
  byId("examples").append(item);
}

refresh();
void begin();
