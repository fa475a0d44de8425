// Which tenants there are, for an operator to choose from.

/** [{value, label, name}] of all tenants; empty for who is no operator. */
export async function tenantOptions({ api, role }) {
  if (role !== "admin") return [];
  const { tenants = [] } = await api.get("/inferbus/v1/tenants");
  return tenants.map(({ tenant_id: id, name }) => ({ value: id, label: name && name !== id ? `${name} (${id})` : id, name: name || id }));
}

/** Put all tenants into the field of `chosen`, for an operator; if that fails it is said there, with a button to try again. */
export async function listTenants(context, chosen) {
  if (context.role !== "admin") return;
  try {
    const options = await tenantOptions(context);
    chosen.failed(null);
    chosen.setOptions("tenant", options);
  } catch (error) {
    chosen.failed(error, () => listTenants(context, chosen));
  }
}

/** The field of a filter; `all`: what no choice is called. */
export function tenantField(all = "all tenants") {
  return { name: "tenant", label: "Tenant", options: [], all };
}
