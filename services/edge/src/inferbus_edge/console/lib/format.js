// Values as people read them. Times are UTC, as bills and buckets are.

const THIN = "\u202f"; // a narrow space between a number and its unit
const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const SHORT = ["", "k", "M", "G", "T", "P"];

/** A whole number with all of its digits; also a text of digits, as protobuf's JSON has 64-bit numbers. */
export function count(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "string" && /^-?\d+$/.test(value)) return WHOLE.format(BigInt(value));
  return Number.isFinite(Number(value)) ? WHOLE.format(Math.round(Number(value))) : "–";
}

/** Three digits and a prefix: 1.23 M. For axes and figures. */
export function compact(value) {
  if (value === null || value === undefined || value === "" || !Number.isFinite(Number(value))) return "–";
  let number = Number(value);
  let power = 0;
  while (Math.abs(number) >= 999.5 && power < SHORT.length - 1) {
    number /= 1000;
    power += 1;
  }
  return power === 0 ? digits(number) : `${digits(number)}${THIN}${SHORT[power]}`;
}

export function bytes(value) {
  if (!Number.isFinite(Number(value))) return "–";
  let number = Number(value);
  let power = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (Math.abs(number) >= 1000 && power < units.length - 1) {
    number /= 1024;
    power += 1;
  }
  return `${digits(number)}${THIN}${units[power]}`;
}

/** Milliseconds, in the unit that fits. */
export function milliseconds(value) {
  if (value === null || value === undefined || !Number.isFinite(Number(value))) return "–";
  const number = Number(value);
  if (number === 0) return `0${THIN}ms`;
  if (Math.abs(number) < 0.9995) return `${digits(number * 1000)}${THIN}µs`;
  if (Math.abs(number) < 999.5) return `${digits(number)}${THIN}ms`;
  if (Math.abs(number) < 120_000) return `${digits(number / 1000)}${THIN}s`;
  return duration(number / 1000);
}

/** Seconds as 1h 5m, 2d 3h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(Number(seconds))) return "–";
  const whole = Math.round(Math.abs(Number(seconds)));
  if (whole < 1) return milliseconds(Number(seconds) * 1000);
  const parts = [[Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"],
                 [Math.floor(whole / 60) % 60, "m"], [whole % 60, "s"]];
  const first = parts.findIndex(([number]) => number > 0);
  const shown = parts.slice(first, first + 2).filter(([number]) => number > 0);
  return (Number(seconds) < 0 ? "-" : "") + shown.map(([number, unit]) => `${number}${unit}`).join(" ");
}

/** A part (0 to 1) in per cent. */
export function percent(part) {
  if (part === null || part === undefined || !Number.isFinite(Number(part))) return "–";
  const number = Number(part) * 100;
  return `${number !== 0 && Math.abs(number) < 10 ? number.toFixed(Math.abs(number) < 0.095 ? 3 : 1) : number.toFixed(number % 1 ? 1 : 0)}${THIN}%`;
}

/** An amount with the name of its currency: see `amountOf`. */
export function money(amount, currency = "") {
  const shown = amountOf(amount, currency);
  return currency && shown !== "–" ? `${shown} ${currency.toUpperCase()}` : shown;
}

/** An amount of `currency` without its name: a decimal text, shown with all of its digits and with no fewer than the currency
 *  has (none of JPY, two of USD, three of KWD), or rounded half to even to `places`. */
export function amountOf(amount, currency, places = null) {
  if (amount === null || amount === undefined || amount === "") return "–";
  const [, sign, whole, rest = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(String(amount)) ?? [null, "", null];
  if (whole === null || whole === undefined) return String(amount);
  let units = whole;
  let part = rest.replace(/0+$/, "");
  if (places !== null && part.length > places) [units, part] = rounded(units, rest, places);
  part = part.padEnd(minorUnits(currency), "0");
  return `${sign}${WHOLE.format(BigInt(units))}${part ? `.${part}` : ""}`;
}

/** Decimals that can be paid; two of what is no currency that the browser knows. */
function minorUnits(currency) {
  try {
    return new Intl.NumberFormat("en-US", { style: "currency", currency }).resolvedOptions().maximumFractionDigits;
  } catch {
    return 2;
  }
}

function rounded(whole, rest, places) {
  const all = BigInt(whole + rest);
  const step = 10n ** BigInt(rest.length - places);
  const over = all % step;
  let kept = all / step;
  if (over * 2n > step || (over * 2n === step && kept % 2n === 1n)) kept += 1n;
  const text = kept.toString().padStart(places + 1, "0");
  return [text.slice(0, text.length - places), text.slice(text.length - places).replace(/0+$/, "")];
}

/** A moment: Unix seconds, a Date, or the API's RFC 3339 text. `style`: second (default), minute, day, millisecond. */
export function time(value, style = "second") {
  if (value === null || value === undefined || value === "") return "–";
  const date = value instanceof Date ? value : typeof value === "string" ? new Date(value) : new Date(value * 1000);
  if (Number.isNaN(date.getTime())) return "–";
  const text = date.toISOString();
  if (style === "day") return text.slice(0, 10);
  const end = { minute: 16, second: 19, millisecond: 23 }[style] ?? 19;
  return text.slice(0, end).replace("T", " ");
}

/** Three significant digits without an exponent. */
function digits(number) {
  const size = Math.abs(number);
  if (size === 0) return "0";
  if (size >= 99.95) return number.toFixed(0);
  if (size >= 9.995) return trimmed(number.toFixed(1));
  if (size >= 0.9995) return trimmed(number.toFixed(2));
  return trimmed(number.toPrecision(2).includes("e") ? number.toFixed(9) : number.toPrecision(2));
}

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}
