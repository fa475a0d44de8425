// Which revisions serve which model, the rollouts under way, and what was decided by which figures. For operators.

import { failed, loading, panel, table } from "../lib/controls.js";
import { models, workersText } from "../lib/deployments_data.js";
import { renderModel } from "../lib/deployments_model.js";
import { REVISIONS, ROLLOUTS, modelLink, stateBadge, weightBar } from "../lib/deployments_parts.js";
import { el, keepingFocus, replace } from "../lib/dom.js";
import { follow } from "../lib/following.js";
import { count, time } from "../lib/format.js";

export const page = {
  name: "deployments",
  title: "Deployments",
  roles: ["admin"],

  render(root, context) {
    const [model] = context.route;
    return model ? renderModel(root, context, model) : renderList(root, context);
  },
};

function renderList(root, context) {
  const asking = new AbortController();
  const body = el("div", { class: "stack" }, loading());
  const trouble = el("div");
  let listed = null;
  replace(root, el("div", { class: "page-head" }, el("h1", { text: page.title })), trouble, body);

  async function load() {
    const options = { signal: asking.signal };
    const [{ rollouts = [] }, { revisions = [] }] = await Promise.all([
      context.api.get(ROLLOUTS, {}, options), context.api.get(REVISIONS, {}, options),
    ]);
    if (asking.signal.aborted) return false;
    replace(trouble);
    const rows = models(rollouts, revisions);
    if (listed) keepingFocus(body, () => listed.update(rows));
    else {
      listed = modelTable(rows);
      replace(body, panel("Models", listed.element));
    }
    return true;
  }

  function troubled(error) {
    if (asking.signal.aborted) return false;
    if (!listed) replace(body);
    replace(trouble, failed(error));
    return true;
  }

  const following = follow(load, troubled);
  return () => {
    asking.abort();
    following.stop();
  };
}

const modelTable = (rows) =>
  table(null, {
    caption: "Models", rows, sort: { by: "Model", descending: false },
    nothing: "No revision was made known yet: all models are served by whatever workers they have.",
    columns: [
      { label: "Model", value: (row) => modelLink(row.model), sort: (row) => row.model },
      { label: "Stable", value: (row) => row.stable || "–", sort: (row) => row.stable },
      { label: "Candidate", value: (row) => (row.candidate ? weightBar(row.candidate, row.weight) : "–"), sort: (row) => row.candidate },
      { label: "State", value: (row) => stateBadge(row.state), sort: (row) => row.state },
      { label: "Workers", value: (row) => workersText(row.workers) },
      { label: "Revisions", align: "right", value: (row) => count(row.revisions), sort: (row) => row.revisions },
      { label: "Last", class: "wrap", value: (row) => (row.last ? `${time(row.last.event_time)} ${row.last.message}` : "–"), sort: (row) => row.last?.event_time ?? "" },
    ],
  });
