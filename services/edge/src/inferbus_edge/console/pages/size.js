// Sizing to play with: which GPUs a model needs, how fast it will be there, what that costs, and when an API is dearer. The API
// works everything out; each figure opens its formula and source.

import { pause } from "../lib/api.js";
import { empty, failed, loading, panel, table } from "../lib/controls.js";
import { el, keepingFocus, replace } from "../lib/dom.js";
import { crossoverPlot } from "../lib/size_crossover.js";
import { figureGroups, gpuColumns, memoryBar } from "../lib/size_figures.js";
import { sizeForm } from "../lib/size_form.js";
import { measuredPanel } from "../lib/size_measured.js";

const PATH = "/inferbus/v1/sizing";
const WAIT_MS = 250; // after the last key
const TRIES = 4;
const BUSY = 429;

export const page = {
  name: "size",
  title: "Sizing",
  roles: ["admin", "tenant_admin"],

  async render(root, context) {
    const known = await context.api.get(PATH);
    const form = sizeForm(context, known, later);
    const problem = el("div", { class: "sizing-told" });
    const results = el("div", { class: "stack" });
    const listed = el("div", {});
    const details = el("div", { class: "stack" });
    const crossing = crossoverPlot();
    const leaving = new AbortController();
    const measured = measuredPanel(context, (load) => form.fill(load));
    const opened = new Set();
    let timer = null;
    let asking = null;
    let plans = [];

    replace(results, listed, details, measured.element);
    results.hidden = true;
    root.append(
      el("div", { class: "page-head" }, el("h1", { text: "Sizing" }),
        el("p", { class: "muted small", text: "Worked out, not measured. Each figure opens its formula and source." })),
      panel("What to serve", form.element), problem, results);
    await Promise.all([ask(), measured.start(leaving.signal)]);
    return () => {
      leaving.abort();
      clearTimeout(timer);
      asking?.abort();
      crossing.destroy();
    };

    function later() {
      clearTimeout(timer);
      timer = setTimeout(ask, WAIT_MS);
    }

    async function ask() {
      asking?.abort();
      const mine = (asking = new AbortController());
      root.setAttribute("aria-busy", "true");
      if (results.hidden) replace(problem, loading());
      try {
        const question = form.question();
        if (question === null) {
          results.hidden = true;
          replace(problem, empty("Paste a model's config.json, or choose its file."));
          return;
        }
        const { plans: found } = await asked(question, mine.signal);
        await withPrice(found, question, mine.signal);
        if (mine.signal.aborted) return;
        plans = found;
        replace(problem);
        results.hidden = false;
        show();
      } catch (error) {
        if (!mine.signal.aborted) replace(problem, failed(error));
      } finally {
        if (asking === mine) root.removeAttribute("aria-busy");
      }
    }

    /** One too many at once is asked again when the API says so. */
    async function asked(question, signal) {
      for (let tries = 1; ; tries += 1) {
        try {
          return await context.api.post(PATH, question, { signal });
        } catch (error) {
          if (error.status !== BUSY || !error.retrySeconds || tries === TRIES) throw error;
          await pause(error.retrySeconds * 1000, signal);
        }
      }
    }

    /** A price is of one kind of GPU: the one that is shown. */
    async function withPrice(found, question, signal) {
      const price = form.price();
      const at = found.findIndex((one) => one.gpu === chosen(found));
      if (price === null || at < 0) return;
      const { plans: priced } = await asked({ ...question, gpu: found[at].gpu, dollars_per_hour: price }, signal);
      found.splice(at, 1, ...priced);
    }

    /** The one that the address names, or the cheapest that fits. */
    function chosen(found = plans) {
      if (found.some((one) => one.gpu === context.query.gpu)) return context.query.gpu;
      const fitting = found.filter((one) => one.fits);
      return (fitting.length ? cheapest(fitting) : found[0])?.gpu;
    }

    function choose(gpu) {
      context.setQuery({ gpu });
      if (form.price() === null) show();
      else ask();
    }

    function show() {
      const plan = plans.find((one) => one.gpu === chosen());
      const priced = plans.some((one) => one.crossover);
      keepingFocus(root, () => {
        replace(listed, panel("GPUs", table(null, {
          caption: "GPUs", rows: plans, sort: { by: "$/M out", descending: false }, columns: gpuColumns(choose, () => chosen(), { priced }),
        }).element));
        replace(details, heading(plan), plan.fits ? fitting(plan) : el("p", { class: "message failed", role: "alert", text: plan.reason }));
      });
      crossing.update(plan.crossover ?? null);
      measured.update(plan);
    }

    function heading(plan) {
      const how = plan.fits ? `${plan.parallel}, weights ${plan.precision.toUpperCase()}, KV cache ${plan.kv_precision.toUpperCase()}, products in ${plan.arithmetic.toUpperCase()}` : "";
      return el("div", { class: "page-head" }, el("h2", { text: plan.title }), el("p", { class: "muted", text: how }));
    }

    function fitting(plan) {
      return [el("div", { class: "grid" }, memoryBar(plan), crossing.element), figureGroups(plan, opened)];
    }
  },
};

function cheapest(fitting) {
  const cost = (one) => one.figures.cost_per_request.value;
  return fitting.reduce((best, one) => (cost(one) < cost(best) ? one : best));
}
