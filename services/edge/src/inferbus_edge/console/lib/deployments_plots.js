// TTFT and ITL of a model by revision: what an old and a new one do in the same minutes.

import { seriesOf, timesOf } from "./analytics_series.js";
import { empty, failed, loading, panel } from "./controls.js";
import { el, replace } from "./dom.js";
import { follow } from "./following.js";
import { milliseconds } from "./format.js";
import { timeSeries } from "./plot.js";

const ANALYTICS = "/inferbus/v1/analytics";
const RANGE_SECONDS = 3600;
const EVERY_MS = 30_000;
const MOST = 4; // revisions, of the largest
const UNKNOWN = "not_known";
const MEASURES = [{ measure: "ttft", title: "Time to first token by revision" }, { measure: "itl", title: "Inter-token latency by revision" }];
const COLUMNS = [["p95", "P95"], ["p99", "P99"]];

/** {element, start(): asks from now on, stop()}. */
export function revisionPlots(context, model) {
  const asking = new AbortController();
  const plots = MEASURES.map(plotOf);
  let following = [];

  function plotOf({ measure, title }) {
    const element = el("div", {}, panel(title, loading()));
    let plot = null;

    async function load() {
      const to = Math.ceil(Date.now() / 1000);
      const [start, end] = [to - RANGE_SECONDS, to].map((second) => new Date(second * 1000).toISOString());
      const params = { measure, start, end, step: "1m", by: "revision", groups: MOST, model };
      const answer = await context.api.get(ANALYTICS, params, { signal: asking.signal });
      if (asking.signal.aborted) return false;
      if (!plot) {
        replace(element);
        plot = timeSeries(element, { title, unit: "P95 and P99, the last hour", format: (value) => milliseconds(value * 1000) });
      }
      plot.update({ times: timesOf(answer), series: seriesOf(answer, COLUMNS, "revision"), range: [to - RANGE_SECONDS, to] });
      return true;
    }

    function troubled(error) {
      if (asking.signal.aborted) return false;
      plot?.destroy();
      plot = null;
      // What cannot be known is no failure.
      replace(element, panel(title, error.code === UNKNOWN ? empty(error.message) : failed(error)));
      return true;
    }
    return { element, follow: () => follow(load, troubled, EVERY_MS), destroy: () => plot?.destroy() };
  }

  return {
    element: el("div", { class: "grid" }, plots.map((one) => one.element)),
    start() {
      following = plots.map((one) => one.follow());
    },
    stop() {
      asking.abort();
      following.forEach((one) => one.stop());
      plots.forEach((one) => one.destroy());
    },
  };
}
