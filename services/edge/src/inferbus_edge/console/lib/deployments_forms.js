// The forms of one model: a rollout to begin, tenants to pin, a revision to shadow. `act(asked, work)`: see
// deployments_model.js.

import { panel } from "./controls.js";
import { shadowOf, startOf } from "./deployments_ask.js";
import { deployable, part, pinsWith, servable } from "./deployments_data.js";
import { place, ROLLOUTS } from "./deployments_parts.js";
import { el, replace } from "./dom.js";

const CANARY = [
  { name: "steps", label: "Steps, %", usual: "5, 25, 100" }, { name: "step_time", label: "A step, s", usual: "60" },
  { name: "min_requests", label: "Requests of a step", usual: "50" }, { name: "max_slowdown", label: "Slower at most, %", usual: "25" },
  { name: "max_errors", label: "More errors at most, %", usual: "1" },
];
const AGREEMENT = { name: "min_agreement", label: "Agreement, %", usual: "50 if derived" };

/** {element, update(revisions, record)}. */
export function deployForm(model, act) {
  const revision = chooser("Revision");
  const strategy = el("select", {}, el("option", { value: "canary", text: "canary, step by step" }), el("option", { value: "blue_green", text: "blue-green, all at once" }));
  const fields = [...CANARY, AGREEMENT].map((one) => ({ ...one, input: el("input", { type: "text", inputmode: "decimal", placeholder: one.usual, autocomplete: "off" }) }));
  const labels = fields.map((one) => labelled(one.label, one.input));
  const button = el("button", { type: "submit", class: "button main", text: "Deploy" });
  const help = el("p", { class: "help" });
  strategy.addEventListener("change", unfold);
  const form = el("form", { class: "form", onsubmit: submit }, el("div", { class: "filters" }, revision.element, labelled("How", strategy), labels), help,
    el("div", { class: "form-row" }, button));

  function unfold() {
    CANARY.forEach((_, at) => (labels[at].hidden = strategy.value !== "canary"));
  }

  async function submit(event) {
    event.preventDefault();
    const said = { model, revision: revision.input.value, strategy: strategy.value, ...Object.fromEntries(fields.map((one) => [one.name, one.input.value])) };
    button.disabled = true;
    await act(`Have ${said.revision} serve ${model}?`, (api) => {
      const body = startOf(said);
      return () => api.post(ROLLOUTS, body);
    });
    button.disabled = !revision.input.value;
  }

  function update(revisions, record) {
    const names = deployable(revisions, record);
    revision.update(names);
    const under = record.candidate_revision;
    button.disabled = names.length === 0 || Boolean(under);
    help.textContent = under ? `${under} is being rolled out: end that first.` : names.length ? "What is left empty is as its field says." : "There is no other revision that may serve.";
  }

  unfold();
  return { element: panel("Deploy a revision", form), update };
}

/** {element, update(revisions, record)}. */
export function pinForms(model, act) {
  const tenant = el("input", { type: "text", autocomplete: "off", spellcheck: "false", required: true });
  const pinned = chooser("Revision to pin it to");
  const shadowed = chooser("Revision to shadow on");
  const share = el("input", { type: "text", inputmode: "decimal", value: "5" });
  let pins = [];
  const listed = place((found) => (found.length ? el("ul", { class: "stack tight" }, found.map(pinLine)) : el("p", { class: "muted", text: "No tenant is pinned." })));
  const shadow = place(shadowLine);

  const putPins = (asked, changed) => act(asked, (api) => () => api.put(`${ROLLOUTS}/pins`, { model, pins: changed }));
  const pinForm = el("form", { class: "form-row", onsubmit: async (event) => {
    event.preventDefault();
    const name = tenant.value.trim();
    const done = await putPins(`Have all requests of ${name} go to ${pinned.input.value}, and wait for it?`, pinsWith(pins, name, pinned.input.value));
    if (done) tenant.value = "";
  } }, labelled("Tenant", tenant), pinned.element, el("button", { type: "submit", class: "button", text: "Pin" }));
  const shadowForm = el("form", { class: "form-row", onsubmit: (event) => {
    event.preventDefault();
    const revision = shadowed.input.value;
    act(`Have ${revision} do ${share.value} % of the requests, too? Nobody gets or pays for what comes of it.`, (api) => {
      const body = shadowOf(model, revision, share.value);
      return () => api.put(`${ROLLOUTS}/shadow`, body);
    });
  } }, shadowed.element, labelled("Part, %", share), el("button", { type: "submit", class: "button", text: "Shadow" }));

  function pinLine({ tenant_id: name, revision }) {
    const off = el("button", { type: "button", class: "button small", text: "Unpin", "aria-label": `Unpin ${name}`, onclick: () =>
      putPins(`Let requests of ${name} go where all others go?`, pinsWith(pins, name, "")) });
    return el("li", { class: "form-row" }, el("span", {}, el("strong", { text: name }), ` to ${revision}`), off);
  }

  function shadowLine(now) {
    if (!now) return el("p", { class: "muted", text: "Nothing is shadowed." });
    const off = el("button", { type: "button", class: "button small", text: "Stop", "aria-label": "Stop the shadow", onclick: () =>
      act("Shadow nothing any more?", (api) => () => api.put(`${ROLLOUTS}/shadow`, shadowOf(model, "", ""))) });
    return el("p", { class: "form-row" }, el("span", { text: `${part(now.permille)} of the requests also run on ${now.revision}.` }), off);
  }

  return {
    element: panel("Pins and shadow", el("div", { class: "stack" }, listed.element, pinForm, shadow.element, shadowForm)),
    update(revisions, record) {
      pins = record.pins ?? [];
      listed.show(pins);
      shadow.show(record.shadow ?? null);
      const names = servable(revisions);
      pinned.update(names);
      shadowed.update(names);
    },
  };
}

const labelled = (text, input) => el("label", {}, el("span", { text }), input);

/** A choice of revisions that stays as it is while there is what was chosen. */
function chooser(label) {
  const input = el("select", { required: true });
  return {
    input, element: labelled(label, input),
    update(names) {
      const now = [...input.options].map((one) => one.value);
      if (now.join("\n") === names.join("\n")) return;
      const chosen = input.value;
      replace(input, names.map((name) => el("option", { value: name, text: name })));
      if (names.includes(chosen)) input.value = chosen;
    },
  };
}
