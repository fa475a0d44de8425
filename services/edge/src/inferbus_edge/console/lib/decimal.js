// Sums of decimal texts, exact: money is never a float. A float may be drawn, never added up.

/** The exact sum of decimal texts. */
export function sum(amounts) {
  let total = 0n;
  let places = 0;
  for (const amount of amounts) {
    const [units, own] = parts(amount);
    if (own > places) {
      total *= 10n ** BigInt(own - places);
      places = own;
    }
    total += units * 10n ** BigInt(places - own);
  }
  return text(total, places);
}

/** Below 0, 0 or above 0, as `first` is less than, equal to or more than `second`. */
export function compare(first, second) {
  const [one, places] = parts(first);
  const [other, others] = parts(second);
  const difference = one * 10n ** BigInt(others) - other * 10n ** BigInt(places);
  return difference < 0n ? -1 : difference > 0n ? 1 : 0;
}

/** How many units of 10^-`places` an amount is, as a BigInt. Throws if it has more decimals. */
export function unitsOf(amount, places) {
  const [units, own] = parts(amount);
  if (own > places) throw new Error(`more than ${places} decimals: ${amount}`);
  return units * 10n ** BigInt(places - own);
}

/** The inverse of unitsOf, without zeros at its end. */
export function ofUnits(units, places) {
  const shown = text(units, places);
  return places ? shown.replace(/\.?0+$/, "") : shown;
}

function parts(amount) {
  const [, sign, whole, rest = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(String(amount || "0")) ?? [];
  if (whole === undefined) throw new Error(`no decimal: ${amount}`);
  return [BigInt(`${sign}${whole}${rest}`), rest.length];
}

function text(units, places) {
  const shown = (units < 0n ? -units : units).toString().padStart(places + 1, "0");
  const end = shown.length - places;
  return `${units < 0n ? "-" : ""}${shown.slice(0, end)}${places ? `.${shown.slice(end)}` : ""}`;
}
