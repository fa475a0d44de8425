// What may be spent, and what was paid in. A tenant sees its own budgets; credits are listed for an operator.

import { badge, failed, filters, loading, panel, table } from "./controls.js";
import { compare } from "./decimal.js";
import { el, replace } from "./dom.js";
import { money, percent, time } from "./format.js";
import { listTenants, tenantField } from "./usage_tenants.js";

export function renderBudgets({ tools, body }, context) {
  const operator = context.role === "admin";
  let asking = null; // a newer question takes the place of the one before
  const chosen = operator ? filters(context, [tenantField()], () => load()) : null;
  replace(tools, chosen?.element);
  listTenants(context, chosen);
  load();

  async function load() {
    asking?.abort();
    const mine = (asking = new AbortController());
    replace(body, loading());
    try {
      const [budgets, credits] = await (operator ? ofOperator(chosen.values().tenant, mine.signal) : ofTenant(mine.signal));
      if (mine.signal.aborted) return;
      replace(body, panel("Budgets", budgetTable(budgets)), credits === null ? null : panel("Credits", creditTable(credits)));
    } catch (error) {
      if (!mine.signal.aborted) replace(body, failed(error, load));
    }
  }

  async function ofOperator(tenant, signal) {
    const options = { signal };
    const [{ budgets = [] }, { credits = [] }] = await Promise.all([
      context.api.get("/inferbus/v1/budgets", { tenant }, options), context.api.get("/inferbus/v1/credits", { tenant }, options),
    ]);
    return [budgets.map(({ budget, ...status }) => ({
      tenant: budget.tenant_id, project: budget.project_id, key: budget.key_id, period: budget.period.replace("BUDGET_PERIOD_", "").toLowerCase(),
      currency: budget.currency, hard: Boolean(budget.hard), thresholds: budget.thresholds ?? [], from: status.period_start, to: status.period_end,
      amount: status.amount || "0", spent: status.spent || "0", reserved: status.reserved || "0", left: status.left || "0",
    })), credits];
  }

  async function ofTenant(signal) {
    const { data } = await context.api.get("/v1/organization/budgets", {}, { signal });
    return [data.map((one) => ({
      ...one, project: one.project_id, key: one.api_key_id, from: one.period_start, to: one.period_end,
      spent: one.spent || "0", reserved: one.reserved || "0",
    })), null];
  }

  function budgetTable(budgets) {
    const right = (label, field) => ({ label, align: "right", value: (one) => money(one[field], one.currency) });
    return table(null, {
      caption: "Budgets",
      nothing: operator ? "No budget is set. One is set with: inferbus budgets set." : "No budget is set for you.",
      rows: budgets,
      columns: [
        { label: "Of", class: "wrap", value: scope, sort: scope },
        { label: "Period", value: (one) => one.period, title: (one) => (one.from ? `${time(one.from)} to ${time(one.to)} UTC` : "what was paid in"), sort: (one) => one.period },
        right("Amount", "amount"), right("Spent", "spent"),
        { label: "Used", value: used, sort: part },
        right("Reserved", "reserved"), right("Left", "left"),
        { label: "At its end", value: (one) => (one.hard ? "refused" : "told only") },
        { label: "State", value: state },
      ],
    }).element;
  }

  const scope = (one) => [operator ? one.tenant : null, one.project ? `project ${one.project}` : null, one.key ? `key ${one.key}` : null]
    .filter(Boolean).join(" · ") || "the whole organization";

  return () => asking?.abort();
}

function creditTable(credits) {
  return table(null, {
    caption: "Credits",
    nothing: "Nothing was paid in beforehand.",
    rows: credits,
    sort: { by: "Paid in (UTC)", descending: true },
    columns: [
      { label: "Credit", class: "wrap", value: (one) => one.credit_id, sort: (one) => one.credit_id },
      { label: "Of", class: "wrap", value: (one) => [one.tenant_id, one.project_id, one.key_id].filter(Boolean).join(" · "), sort: (one) => one.tenant_id },
      { label: "Amount", align: "right", value: (one) => money(one.amount, one.currency) },
      { label: "Paid in (UTC)", value: (one) => time(one.create_time, "minute"), sort: (one) => one.create_time },
      { label: "Expires (UTC)", value: (one) => (one.expire_time ? time(one.expire_time, "minute") : "never"), sort: (one) => one.expire_time ?? null },
      { label: "Note", class: "wrap", value: (one) => one.note ?? "" },
    ],
  }).element;
}

/** How much of it is spent, as a part: for the bar and its order only. */
function part(one) {
  return Number(one.amount) > 0 ? Number(one.spent) / Number(one.amount) : compare(one.spent, "0") > 0 ? 1 : 0;
}

function used(one) {
  const share = part(one);
  const bar = el("span", { class: `meter ${tone(one)}`, title: percent(share) }, el("span"));
  bar.firstChild.style.width = `${Math.min(100, share * 100).toFixed(1)}%`;
  return el("span", {}, bar, el("span", { class: "unseen", text: percent(share) }));
}

function state(one) {
  if (compare(one.left, "0") <= 0) return badge("used up", "bad");
  return tone(one) === "warn" ? badge(`above ${percent(passed(one))}`, "warn") : badge("open", "good");
}

function tone(one) {
  return compare(one.left, "0") <= 0 ? "bad" : passed(one) ? "warn" : "good";
}

/** The highest threshold that was passed, as a part; 0 if none. */
function passed(one) {
  return Math.max(0, ...(one.thresholds ?? []).map(Number).filter((threshold) => part(one) >= threshold));
}
