// The page's words in English, French and Chinese. `data-t` marks an element's text, `data-t-label` and
// `data-t-placeholder` its aria-label and placeholder.
// @ts-check

/** @type {Record<string, Record<string, string>>} */
const WORDS = {
  en: {
    ask: "Ask something", send: "Send", stop: "Stop the answer", newChat: "New chat", chats: "Chats",
    settings: "Settings", compare: "Compare", welcome: "Ask, and watch it think.",
    welcomeText: "Thoughts come first and dimmed, the answer after them. Small models are good at what they were taught: try one of these.",
    hint: "Enter sends, Shift+Enter starts a new line, Escape stops.", wrong: "A small model can be wrong.",
    skip: "Skip to the question", question: "Your question", conversation: "Conversation", examples: "Example problems",
    connecting: "connecting…", waiting: "Waiting…", thinking: "Thinking…", thoughtFor: "Thought for", thought: "Thought",
    answerNow: "Answer now", tokens: "tokens", token: "token", tokensPerS: "tokens/s", cutOff: "cut off at the length limit", noAnswer: "ended without an answer",
    circles: "stopped: it went in circles", stopped: "stopped", edit: "Edit", regenerate: "Regenerate", copy: "Copy", copied: "Copied",
    save: "Send the edit", cancel: "Cancel", previous: "Previous version", next: "Next version", of: "of",
    think: "Think before answering", budget: "Longest thought, in tokens", budgetHint: "empty: half of the room",
    temperature: "Temperature", maxTokens: "Longest answer, in tokens", system: "System text", model: "Model", language: "Language",
    theme: "Colours", themeAuto: "as the system", light: "light", dark: "dark", experts: "Show which experts fired",
    exportAll: "Export chats", importAll: "Import chats", deleteChat: "Delete this chat", close: "Close", untitled: "New chat",
    keyTitle: "This server asks for a key", keyWrong: "That key is not accepted", keyLabel: "API key", go: "Continue",
    keyNote: "Kept in this tab until you close it, and sent to this server alone.",
    perMillion: "per million tokens", spent: "Spent on what is on show", context: "Context used", lostAnswer: "The thought was cut off before an answer.",
    badFile: "This file holds no chats.", storageFull: "The browser's storage is full: this chat is not kept.",
    expertsOf: "Experts of each token", layer: "Layer", noExperts: "This model has no experts.", second: "Second answer by",
    closed: "The connection closed before the answer was complete.",
  },
  fr: {
    ask: "Posez une question", send: "Envoyer", stop: "Arrêter la réponse", newChat: "Nouvelle discussion", chats: "Discussions",
    settings: "Réglages", compare: "Comparer", welcome: "Demandez, et regardez-le réfléchir.",
    welcomeText: "Les pensées d'abord, en retrait, puis la réponse. Un petit modèle sait faire ce qu'on lui a appris : essayez l'un de ces problèmes.",
    hint: "Entrée envoie, Maj+Entrée va à la ligne, Échap arrête.", wrong: "Un petit modèle peut se tromper.",
    skip: "Aller à la question", question: "Votre question", conversation: "Discussion", examples: "Exemples de problèmes",
    connecting: "connexion…", waiting: "En attente…", thinking: "Il réfléchit…", thoughtFor: "A réfléchi", thought: "Pensée",
    answerNow: "Répondre maintenant", tokens: "jetons", token: "jeton", tokensPerS: "jetons/s", cutOff: "coupé à la longueur limite", noAnswer: "terminé sans réponse",
    circles: "arrêté : il tournait en rond", stopped: "arrêté", edit: "Modifier", regenerate: "Refaire", copy: "Copier", copied: "Copié",
    save: "Envoyer la modification", cancel: "Annuler", previous: "Version précédente", next: "Version suivante", of: "sur",
    think: "Réfléchir avant de répondre", budget: "Pensée la plus longue, en jetons", budgetHint: "vide : la moitié de la place",
    temperature: "Température", maxTokens: "Réponse la plus longue, en jetons", system: "Texte du système", model: "Modèle", language: "Langue",
    theme: "Couleurs", themeAuto: "comme le système", light: "claires", dark: "sombres", experts: "Montrer les experts actifs",
    exportAll: "Exporter", importAll: "Importer", deleteChat: "Supprimer cette discussion", close: "Fermer", untitled: "Nouvelle discussion",
    keyTitle: "Ce serveur demande une clé", keyWrong: "Cette clé n'est pas acceptée", keyLabel: "Clé d'API", go: "Continuer",
    keyNote: "Gardée dans cet onglet jusqu'à sa fermeture, et envoyée à ce seul serveur.",
    perMillion: "le million de jetons", spent: "Dépensé pour ce qui est affiché", context: "Contexte utilisé", lostAnswer: "La pensée a été coupée avant une réponse.",
    badFile: "Ce fichier ne contient pas de discussions.", storageFull: "Le navigateur n'a plus de place : cette discussion n'est pas gardée.",
    expertsOf: "Experts de chaque jeton", layer: "Couche", noExperts: "Ce modèle n'a pas d'experts.", second: "Seconde réponse par",
    closed: "La connexion s'est fermée avant la fin de la réponse.",
  },
  zh: {
    ask: "提个问题", send: "发送", stop: "停止回答", newChat: "新对话", chats: "对话", settings: "设置", compare: "对比",
    welcome: "提问，看它思考。", welcomeText: "先显示思考（较淡），再显示答案。小模型擅长学过的题目：试试下面的例子。",
    hint: "回车发送，Shift+回车换行，Esc 停止。", wrong: "小模型可能会出错。", skip: "跳到输入框", question: "你的问题",
    conversation: "对话内容", examples: "例题", connecting: "连接中…", waiting: "等待中…", thinking: "思考中…", thoughtFor: "思考了",
    thought: "思考", answerNow: "立即回答", tokens: "个词元", token: "个词元", tokensPerS: "词元/秒", cutOff: "达到长度上限", noAnswer: "没有给出回答",
    circles: "已停止：内容重复", stopped: "已停止", edit: "编辑", regenerate: "重新生成", copy: "复制", copied: "已复制", save: "发送修改",
    cancel: "取消", previous: "上一版本", next: "下一版本", of: "/", think: "先思考再回答", budget: "思考上限（词元）",
    budgetHint: "留空：一半空间", temperature: "温度", maxTokens: "回答上限（词元）", system: "系统提示", model: "模型", language: "语言",
    theme: "颜色", themeAuto: "跟随系统", light: "浅色", dark: "深色", experts: "显示激活的专家", exportAll: "导出对话", importAll: "导入对话",
    deleteChat: "删除此对话", close: "关闭", untitled: "新对话", keyTitle: "此服务器需要密钥", keyWrong: "密钥不被接受", keyLabel: "API 密钥",
    go: "继续", keyNote: "只保存在此标签页中，只发送给此服务器。", perMillion: "每百万词元", spent: "当前显示内容的花费", context: "已用上下文",
    lostAnswer: "思考在给出答案前被截断。", badFile: "此文件不含对话。", storageFull: "浏览器存储已满：此对话未保存。",
    expertsOf: "每个词元的专家", layer: "层", noExperts: "此模型没有专家。", second: "第二个回答来自", closed: "回答未完成，连接已关闭。",
  },
};

let language = "en";

/** The word of the page's language. */
export const t = (/** @type {string} */ name) => WORDS[language][name] ?? WORDS.en[name] ?? name;

export const languages = Object.keys(WORDS);

/** The browser's language, if the page speaks it. */
export function preferred() {
  return navigator.languages.map((one) => one.slice(0, 2)).find((one) => languages.includes(one)) ?? "en";
}

/** Put the page into a language. */
export function speak(/** @type {string} */ chosen, root = document) {
  language = languages.includes(chosen) ? chosen : "en";
  document.documentElement.lang = language;
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = t(one.getAttribute("data-t") ?? "");
  for (const one of root.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.getAttribute("data-t-label") ?? ""));
  for (const one of root.querySelectorAll("[data-t-placeholder]")) one.setAttribute("placeholder", t(one.getAttribute("data-t-placeholder") ?? ""));
}
