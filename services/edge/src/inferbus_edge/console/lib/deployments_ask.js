// What the forms of deployments ask for: texts that a person typed, as the body of a request. Throws what to tell the
// person; what they leave empty is left to the API.

/** "5, 25, 100" (per cent) → [50, 250, 1000]. */
export function stepsOf(text) {
  const words = text.split(/[\s,;%]+/).filter(Boolean);
  const found = words.map((one) => Math.round(Number(one) * 10));
  if (found.some((one) => !(one >= 1 && one <= 1000))) throw new Error(`“${text}” are no steps in per cent, such as 5, 25, 100.`);
  return found;
}

/** Per cent as a part: "25" → 0.25. */
export function partOf(text, label) {
  return numberOf(text.replace("%", ""), label, 100);
}

function numberOf(text, label, per = 1) {
  const number = Number(text.trim());
  if (text.trim() === "" || !Number.isFinite(number) || number < 0) throw new Error(`${label}: “${text}” is no number from 0 on.`);
  return number / per;
}

/** `said`: {model, revision, strategy, steps, step_time (s), min_requests, max_slowdown, max_errors, min_agreement (all %)}
 *  as typed. The body of a rollout's start. */
export function startOf(said) {
  const body = { model: said.model, revision: said.revision, strategy: said.strategy };
  if (!said.revision) throw new Error("Choose a revision.");
  const policy = {};
  const put = (name, text, read) => {
    if (text && text.trim()) policy[name] = read(text);
  };
  if (said.strategy === "canary") {
    if (said.steps && said.steps.trim()) body.step_permille = stepsOf(said.steps);
    put("step_time", said.step_time, (text) => numberOf(text, "Step"));
    put("min_requests", said.min_requests, (text) => Math.round(numberOf(text, "Requests of a step")));
    put("max_slowdown", said.max_slowdown, (text) => partOf(text, "Slower"));
    put("max_error_increase", said.max_errors, (text) => partOf(text, "More errors"));
  }
  put("min_agreement", said.min_agreement, (text) => partOf(text, "Agreement"));
  if (Object.keys(policy).length) body.policy = policy;
  return body;
}

/** `share`: per cent, as typed; no revision: nothing is shadowed any more. */
export function shadowOf(model, revision, share) {
  if (!revision) return { model };
  const permille = Math.round(partOf(share, "Part") * 1000);
  if (permille < 1 || permille > 1000) throw new Error("Part: from 0.1 to 100 per cent.");
  return { model, shadow: { revision, permille } };
}
