// Numbers as people read them.
// @ts-check
import { t } from "./i18n.js";

export const counted = (/** @type {number} */ n) => `${n.toLocaleString(document.documentElement.lang)} ${t(n === 1 ? "token" : "tokens")}`;
export const seconds = (/** @type {number} */ ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
export const dollars = (/** @type {number} */ usd) => (usd === 0 ? "$0" : `$${usd.toPrecision(2).replace(/e-(\d+)/, "e−$1")}`);
