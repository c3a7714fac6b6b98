// A conversation on the page with one model: asking, stopping, editing, branches. A second pane asks another model the same.
// @ts-check
import * as chats from "./chats.js";
import { byId, say } from "./dom.js";
import { t } from "./i18n.js";
import { fields, settings } from "./settings.js";
import { AnswerItem, questionItem, withoutTags } from "./turn.js";
import { explain, post, readEvents } from "./wire.js";

const OPTIONS = { include_usage: true, continuous_usage_stats: true }; // an answer that is stopped has told what it used

export class Pane {
  constructor(/** @type {HTMLElement} */ list, /** @type {() => void} */ changed) {
    this.list = list;
    this.changed = changed;
    this.chat = chats.begin();
    this.model = "";
    this.maxLen = 0;
    this.hasExperts = false;
    this.endsThoughts = true;
    /** @type {AbortController | null} */
    this.running = null;
    this.answerId = "";
  }

  /** Show a chat, the branch that it ends in. */
  open(/** @type {chats.Chat} */ chat) {
    this.stop();
    this.chat = chat;
    this.draw();
  }

  draw() {
    this.list.replaceChildren(...chats.branch(this.chat).map((node) => this.itemOf(node)));
    this.changed();
  }

  itemOf(/** @type {chats.Node} */ node) {
    if (node.role === "user") return questionItem(this.chat, node, this.acts);
    const answer = new AnswerItem(this.chat, node, this.acts);
    answer.settle();
    return answer.item;
  }

  get acts() {
    return {
      edit: (/** @type {chats.Node} */ node, /** @type {string} */ text) => { if (!this.running) void this.ask(text, node.parent); },
      again: (/** @type {chats.Node} */ node) => { if (!this.running) void this.answer(/** @type {string} */ (node.parent)); },
      show: (/** @type {chats.Node} */ node) => {
        if (this.running) return;
        chats.show(this.chat, node);
        this.draw();
      },
      answerNow: this.endsThoughts ? () => void post("v1/chat/completions/control", { id: this.answerId, action: "reasoning_end" }) : null,
    };
  }

  stop() { this.running?.abort(); }

  /** Put a question after `parent` and have it answered. */
  async ask(/** @type {string} */ text, parent = this.chat.leaf) {
    await this.answer(chats.add(this.chat, parent, "user", text).id);
  }

  /** Have the model answer the branch that ends in `question`. */
  async answer(/** @type {string} */ question) {
    const chat = this.chat; // another may be opened while this answer is being stopped
    const asked = chats.messages(chats.branch(chat, question), settings.system);
    const node = chats.add(chat, question, "assistant", "");
    node.model = this.model;
    const turn = new AnswerItem(chat, node, this.acts);
    this.list.replaceChildren(...chats.branch(chat, question).map((one) => this.itemOf(one)), turn.item);
    turn.start();
    this.running = new AbortController();
    const { signal } = this.running;
    this.changed();
    say(t("thinking"));
    try {
      await this.stream(turn, asked, signal);
    } catch (error) {
      if (signal.aborted) {
        turn.finish("stopped");
        say(t("stopped"));
      } else {
        turn.fail(error instanceof Error ? error.message : String(error));
      }
    }
    this.running = null;
    this.changed();
  }

  async stream(/** @type {AnswerItem} */ turn, /** @type {any[]} */ messages, /** @type {AbortSignal} */ signal) {
    const body = { model: this.model, messages, stream: true, stream_options: OPTIONS, ...fields(this.hasExperts) };
    const response = await post("v1/chat/completions", body, signal);
    if (!response.ok || !response.body) throw await explain(response);
    const scroller = byId("scroll");
    let reason = null;
    for await (const event of readEvents(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const follow = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
      this.answerId = event.id;
      turn.node.usage = event.usage ?? turn.node.usage;
      for (const choice of event.choices) {
        turn.take(choice.delta);
        reason = choice.stop_reason ?? choice.finish_reason ?? reason;
        if (choice.experts) turn.node.experts = choice.experts;
      }
      if (follow) scroller.scrollTop = scroller.scrollHeight;
    }
    turn.finish(reason);
    scroller.scrollTop = scroller.scrollHeight;
    say(turn.node.content ? withoutTags(turn.node.content) : t("lostAnswer"));
  }

  /** Dollars of this chat, all branches, null for nothing yet; and how much of the context the branch on show fills. */
  figures() {
    const usages = Object.values(this.chat.nodes).map((node) => node.usage).filter(Boolean);
    const spent = usages.reduce((sum, usage) => sum + (usage.cost_usd ?? 0), 0);
    const last = chats.branch(this.chat).findLast((node) => node.usage)?.usage;
    return { spent: usages.length ? spent : null, used: last?.total_tokens ?? 0, room: this.maxLen };
  }
}
