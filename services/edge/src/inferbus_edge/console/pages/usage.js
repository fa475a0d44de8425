// Usage and cost: what was used and what it cost, budgets, invoices, and an operator's margin.

import { query } from "../lib/api.js";
import { tabs } from "../lib/controls.js";
import { el, replace } from "../lib/dom.js";
import { renderBudgets } from "../lib/usage_budgets.js";
import { renderInvoices } from "../lib/usage_invoices.js";
import { renderMargin } from "../lib/usage_margin.js";
import { renderReport } from "../lib/usage_report.js";

const PARTS = [
  { name: "report", label: "Usage", render: renderReport },
  { name: "budgets", label: "Budgets and credits", render: renderBudgets },
  { name: "invoices", label: "Invoices", render: renderInvoices },
  { name: "margin", label: "Margin", render: renderMargin, role: "admin" },
];

export const page = {
  name: "usage",
  title: "Usage and cost",
  roles: ["admin", "tenant_admin"],
  render(root, context) {
    const parts = PARTS.filter((one) => !one.role || one.role === context.role);
    const part = parts.find((one) => one.name === context.route[0]) ?? parts[0];
    const tools = el("div", { class: "toolbar" });
    const body = el("div", { class: "stack" });
    const links = tabs("Parts of usage and cost", parts.map((one) => ({ label: one.label, href: `#/usage/${one.name}`, current: one === part })));
    links.addEventListener("click", (event) => follow(event, context));
    replace(root, el("div", { class: "page-head" }, el("h1", { text: page.title }), tools), links, body);
    return part.render({ tools, body }, context);
  },
};

/** Range and tenant stay the same from part to part. */
function follow(event, context) {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const { from, to, tenant } = context.query;
  context.navigate(link.getAttribute("href") + query({ from, to, tenant }));
}
