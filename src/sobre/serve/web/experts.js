// Which experts of a mixture-of-experts model each token visited: one layer at a time, a colour for each expert.
// @ts-check
import { element } from "./dom.js";
import { t } from "./i18n.js";

/** @typedef {{n_experts: number, tokens: string[], layers: {layer: number, experts: number[][]}[]}} Experts */

const hue = (/** @type {number} */ expert, /** @type {number} */ n) => Math.round((expert * 360) / n);

/** The view of one answer. */
export function expertView(/** @type {Experts} */ data) {
  const view = element("details", "experts");
  view.append(element("summary", "", t("expertsOf")));
  const pick = /** @type {HTMLSelectElement} */ (element("select"));
  pick.setAttribute("aria-label", t("layer"));
  data.layers.forEach((one, i) => pick.append(new Option(`${t("layer")} ${one.layer}`, String(i))));
  const bars = element("div", "bars"), text = element("p", "text");
  const draw = () => {
    const { experts } = data.layers[Number(pick.value)];
    const visits = Array.from({ length: data.n_experts }, () => 0);
    for (const chosen of experts) for (const expert of chosen) visits[expert] += 1;
    const most = Math.max(1, ...visits);
    bars.replaceChildren(...visits.map((n, expert) => {
      const bar = element("span", "bar");
      bar.title = `${expert}: ${n}`;
      bar.style.setProperty("--hue", String(hue(expert, data.n_experts)));
      bar.style.setProperty("--share", String(n / most));
      return bar;
    }));
    text.replaceChildren(...data.tokens.map((token, i) => {
      const mark = element("span", "token", token);
      mark.title = experts[i].join(", ");
      mark.style.setProperty("--hue", String(hue(experts[i][0] ?? 0, data.n_experts)));
      return mark;
    }));
  };
  pick.addEventListener("input", draw);
  view.addEventListener("toggle", draw, { once: true });
  view.append(pick, bars, text);
  return view;
}
