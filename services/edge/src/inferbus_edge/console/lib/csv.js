// Rows as a CSV file (RFC 4180) that a spreadsheet opens without running anything in it.

/** `columns`: [[heading, row → value]]. */
export function csv(columns, rows) {
  const lines = [columns.map(([name]) => name), ...rows.map((row) => columns.map(([, value]) => value(row)))];
  return new Blob([lines.map((line) => line.map(cell).join(",")).join("\r\n"), "\r\n"], { type: "text/csv;charset=utf-8" });
}

/** A spreadsheet takes what begins with one of these for a formula; tags and end users are the caller's own words. */
function cell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(text) && !/^-?\d+(\.\d+)?$/.test(text) ? `'${text}` : text;
  // Where decimals have a comma, spreadsheets part cells at semicolons; some do at tabs.
  return /[",;\t\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
