// Tables sort, filter, and download as CSV; without this script, everything can still be read.
"use strict";

const MIN_ROWS = 6;

function create(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

const SECONDS = { minute: 60, hour: 3600, day: 86400, year: 31557600 };

// The first number in a cell that begins with one, durations in seconds, or its text; NaN for an empty cell.
function sortKey(cell) {
  const text = cell.textContent.trim();
  if (text === "" || text === "\u2013") return NaN;
  const number = text.replace(/,(?=\d{3})/g, "").match(/^[<>\u2264\u2265~]?\s*([-+]?\d+(\.\d+)?(e[-+]?\d+)?)( (minute|hour|day|year)s?$)?/i);
  return number ? parseFloat(number[1]) * (SECONDS[number[5]] ?? 1) : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortRows(table, header) {
  const isAscending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[header.cellIndex]), row]);
  rows.sort(([a], [b]) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return isAscending ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function filterRows(table, text, status) {
  const words = text.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  status.textContent = text ? `${shown} of ${table.tBodies[0].rows.length} rows` : "";
}

function formatCsv(table) {
  const quote = (cell) => `"${cell.textContent.trim().replace(/\s+/g, " ").replaceAll('"', '""')}"`;
  const rows = [...table.rows].filter((row) => !row.hidden);
  return rows.map((row) => [...row.cells].map(quote).join(",")).join("\r\n");
}

function download(table, title) {
  const link = create("a", { download: `${title.replace(/[^\w.-]+/g, "-")}.csv` });
  link.href = URL.createObjectURL(new Blob(["\ufeff", formatCsv(table)], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function enhance(table) {
  const title = table.dataset.title;
  for (const header of table.tHead.rows[0].cells) {
    const button = create("button", { type: "button" });
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortRows(table, header));
    header.append(button);
  }
  const tools = create("div", { className: "tools" });
  if (table.tBodies[0].rows.length >= MIN_ROWS) {
    const status = create("span", { className: "soft" });
    status.setAttribute("role", "status");
    const input = create("input", { type: "search", placeholder: "Filter rows", ariaLabel: `Filter rows of ${title}` });
    input.addEventListener("input", () => filterRows(table, input.value, status));
    tools.append(input, status);
  }
  const button = create("button", { type: "button", textContent: "Download as CSV", ariaLabel: `Download as CSV: ${title}` });
  button.addEventListener("click", () => download(table, title));
  tools.append(button);
  table.parentNode.before(tools);
}

for (const table of document.querySelectorAll("table")) enhance(table);

// On paper, everything is unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
  for (const image of document.images) image.loading = "eager";
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
