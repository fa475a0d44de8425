// Invoices and credit notes: what was issued, and its files. An operator sees drafts of a tenant's month, too.

import { badge, download, failed, filters, loading, panel, table } from "./controls.js";
import { el, replace } from "./dom.js";
import { money, time } from "./format.js";
import { listTenants, tenantField } from "./usage_tenants.js";

const FILES = ["pdf", "csv", "json"];
const TONES = { final: "good", voided: "bad", draft: "warn" };

export function renderInvoices({ tools, body }, context) {
  const operator = context.role === "admin";
  const path = operator ? "/inferbus/v1/invoices" : "/v1/organization/invoices";
  const leaving = new AbortController();
  let asking = null; // a newer question takes the place of the one before
  const chosen = filters(context, [
    ...(operator ? [tenantField()] : []), { name: "month", label: "Month", placeholder: "2026-11" },
  ], () => load());
  replace(tools, chosen.element);
  listTenants(context, chosen);
  load();

  async function load() {
    const { tenant, month } = chosen.values();
    asking?.abort();
    const mine = (asking = new AbortController());
    replace(body, loading());
    try {
      const options = { signal: mine.signal };
      const [{ invoices = [] }, drafts] = await Promise.all([
        context.api.get(path, { tenant, month }, options),
        operator && tenant ? context.api.get(`${path}/drafts`, { tenant, month: month || thisMonth() }, options) : null,
      ]);
      if (mine.signal.aborted) return;
      const problem = el("div");
      replace(body, problem, panel("Issued", listed(invoices, "Nothing was issued.", problem)),
        drafts === null ? (operator ? el("p", { class: "muted", text: "Choose a tenant to see what it owes so far." }) : null) : panel(`Draft of ${month || thisMonth()}`, listed(drafts.invoices ?? [], "Nothing is owed.", problem)));
    } catch (error) {
      if (!mine.signal.aborted) replace(body, failed(error, load));
    }
  }

  function listed(invoices, nothing, problem) {
    const amount = (label, field) => ({ label, align: "right", value: (one) => money(one[field] || "0", one.currency) });
    return table(null, {
      caption: "Invoices",
      nothing,
      rows: invoices,
      columns: [
        { label: "Number", value: (one) => one.number || "–", sort: (one) => one.number ?? "" },
        { label: "Kind", value: (one) => word(one.kind, "INVOICE_KIND_").replace("_", " ") },
        ...(operator ? [{ label: "Tenant", value: (one) => one.tenant_id, sort: (one) => one.tenant_id }] : []),
        { label: "Month", value: (one) => one.month, sort: (one) => one.month },
        { label: "State", value: (one) => badge(word(one.state, "INVOICE_STATE_"), TONES[word(one.state, "INVOICE_STATE_")]) },
        amount("Net", "net"), amount("Tax", "tax"), amount("Total", "total"), amount("Due", "due"),
        { label: "Due by", value: (one) => time(one.due_time, "day"), sort: (one) => one.due_time ?? "" },
        { label: "Files", value: (one) => (one.number ? el("span", { class: "segments" }, FILES.map((kind) => fileButton(one, kind, problem))) : "") },
      ],
    }).element;
  }

  function fileButton({ number }, kind, problem) {
    return el("button", { type: "button", class: "button small plain", text: kind.toUpperCase(), "aria-label": `${number} as ${kind.toUpperCase()}`, onclick: fetchFile });

    async function fetchFile(event) {
      const button = event.currentTarget;
      button.disabled = true;
      replace(problem);
      try {
        download(await context.api.file(`${path}/${encodeURIComponent(number)}/${kind}`, {}, { signal: leaving.signal }), `${number}.${kind}`);
      } catch (error) {
        if (!leaving.signal.aborted) replace(problem, failed(error));
      }
      button.disabled = false;
    }
  }

  return () => {
    asking?.abort();
    leaving.abort();
  };
}

const word = (name, prefix) => (name ?? "").replace(prefix, "").toLowerCase();
const thisMonth = () => new Date().toISOString().slice(0, 7);
