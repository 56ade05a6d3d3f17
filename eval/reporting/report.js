"use strict";
const collator = new Intl.Collator("en", {numeric: true});
const value = cell => cell.dataset.value ?? cell.textContent.trim();
// Compare numbers as numbers; keep empty cells last in both directions.
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const x = Number(a), y = Number(b);
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y);
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("button")?.closest("th");
    if (!head) return;
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = sign > 0 ? "ascending" : "descending";
    const rows = Array.from(table.tBodies[0].rows, row => [value(row.cells[head.cellIndex]), row]);
    rows.sort((a, b) => compare(a[0], b[0], sign));
    table.tBodies[0].append(...rows.map(row => row[1]));
  });
}
// Show the trials whose row contains every word of the filter.
const filter = document.getElementById("filter"), shown = document.getElementById("shown");
const trials = Array.from(document.getElementById("trials-table").tBodies[0].rows, row => [row.textContent.toLowerCase(), row]);
filter.closest("p").hidden = false;
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/);
  let n = 0;
  for (const [text, row] of trials) n += !(row.hidden = !words.every(word => text.includes(word)));
  shown.textContent = n === trials.length ? `${n} trials` : `${n} of ${trials.length} trials`;
});
// Highlight the selected entries of a legend in all plots of its section.
for (const legend of document.querySelectorAll(".legend")) {
  legend.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    const on = button.ariaPressed !== "true", plots = legend.parentElement;
    button.ariaPressed = on;
    for (const curve of plots.querySelectorAll(`.curve.${button.dataset.entry}`)) curve.classList.toggle("on", on);
    plots.classList.toggle("picked", legend.querySelector("[aria-pressed=true]") !== null);
  });
}
