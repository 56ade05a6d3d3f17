"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const create = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const collator = new Intl.Collator("en", {numeric: true, sensitivity: "base"});
const value = cell => cell.dataset.value ?? cell.textContent.trim();
// Compare numbers as numbers; keep empty cells last in both directions.
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const x = Number(a), y = Number(b);
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y);
}
// What the reader has chosen is kept after the # of the address, so that a link shows the same.
const chosen = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
function remember(key, values) {
  chosen.delete(key);
  for (const text of values) if (text) chosen.append(key, text);
  history.replaceState(null, "", `#${chosen}`);
}
addEventListener("hashchange", () => location.hash.includes("=") && location.reload());

// Tables: sort by a column, filter rows by words and by conditions such as accuracy>0.8, choose columns.
const sheet = new CSSStyleSheet();
document.adoptedStyleSheets = [sheet];
const operators = {">": s => s > 0, ">=": s => s >= 0, "<": s => s < 0, "<=": s => s <= 0, "=": s => s === 0, "!=": s => s !== 0};
for (const table of all("table.sortable")) {
  const {id} = table, body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const names = heads.map(head => head.dataset.name), tools = document.getElementById(`${id}-tools`);
  const filter = tools.querySelector("input"), shown = tools.querySelector("[role=status]");
  tools.hidden = false;

  function sort(name, sign) {
    const column = names.indexOf(name);
    if (column < 0) return;
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].ariaSort = sign > 0 ? "ascending" : "descending";
    const sorted = rows.map(row => [value(row.cells[column]), row]).sort((a, b) => compare(a[0], b[0], sign));
    body.append(...sorted.map(row => row[1]));
  }
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("button")?.closest("th");
    if (!head) return;
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    sort(head.dataset.name, sign);
    remember(`${id}.sort`, [(sign < 0 ? "-" : "") + head.dataset.name]);
  });

  // A column is meant by its name, its last part, or its beginning.
  function find(key) {
    const tests = [n => n === key, n => n.endsWith(`.${key}`), n => n.startsWith(key)];
    return names.findIndex(n => tests.find(test => names.some(m => test(m.toLowerCase())))?.(n.toLowerCase()));
  }
  function condition(word) {
    const [, key, operator, limit] = /^([^<>=!]+)(>=|<=|!=|>|<|=)(.+)$/.exec(word) ?? [];
    const column = key ? find(key) : -1;
    if (column < 0) return row => row.textContent.toLowerCase().includes(word);
    return row => value(row.cells[column]) !== "" && operators[operator](compare(value(row.cells[column]), limit, 1));
  }
  function select() {
    const conditions = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(condition);
    for (const row of rows) row.hidden = !conditions.every(holds => holds(row));
    const n = rows.filter(row => !row.hidden).length;
    shown.textContent = n === rows.length ? `${n} ${tools.dataset.rows}` : `${n} of ${rows.length} ${tools.dataset.rows}`;
  }
  filter.addEventListener("input", () => {
    select();
    remember(`${id}.filter`, [filter.value]);
  });

  const changed = new Set(chosen.getAll(`${id}.column`)), rule = sheet.cssRules[sheet.insertRule(`#${id} x {}`)];
  function show() {
    const hidden = heads.filter(head => ("optional" in head.dataset) !== changed.has(head.dataset.name));
    rule.selectorText = hidden.map(head => `#${id} :is(th, td):nth-child(${head.cellIndex + 1})`).join() || `#${id} x`;
    rule.style.display = "none";
  }
  const boxes = tools.querySelector("details div");
  for (const head of heads) {
    const name = head.dataset.name, checked = ("optional" in head.dataset) === changed.has(name);
    boxes.append(create("label", {}, create("input", {type: "checkbox", checked, value: name}), name));
  }
  boxes.addEventListener("change", event => {
    changed.delete(event.target.value) || changed.add(event.target.value);
    show();
    remember(`${id}.column`, changed);
  });

  filter.value = chosen.get(`${id}.filter`) ?? "";
  const order = chosen.get(`${id}.sort`) ?? "";
  sort(order.replace(/^-/, ""), order.startsWith("-") ? -1 : 1);
  if (filter.value) select();
  show();
}

// Two trials that are ticked: what differs between them.
const trials = document.getElementById("trials-table"), difference = document.getElementById("difference");
const picked = trial => all("tbody tr", trials).find(row => value(row.cells[0]) === trial);
function contrast() {
  const names = chosen.getAll("trial").filter(picked), pair = names.map(picked);
  for (const box of all(".pick", trials)) box.checked = pair.includes(box.closest("tr"));
  difference.hidden = pair.length < 2;
  if (difference.hidden) return;
  const table = difference.querySelector("table"), heads = [...trials.tHead.rows[0].cells].slice(1);
  table.tHead.replaceChildren(create("tr", {}, ...["", ...names, "second − first"].map(text => create("th", {scope: "col", className: "plain", textContent: text}))));
  table.tBodies[0].replaceChildren(...heads.flatMap(head => {
    const [a, b] = pair.map(row => value(row.cells[head.cellIndex]));
    if (a === b) return [];
    const change = a !== "" && b !== "" ? Number(b) - Number(a) : NaN;
    const cells = [a, b, Number.isNaN(change) ? "" : (change > 0 ? "+" : "") + Number(change.toPrecision(4))];
    return [create("tr", {}, create("th", {scope: "row", textContent: head.dataset.name}), ...cells.map(textContent => create("td", {textContent})))];
  }));
}
trials.addEventListener("change", event => {
  const name = value(event.target.closest("tr").cells[0]), others = chosen.getAll("trial").filter(other => other !== name);
  remember("trial", event.target.checked ? [...others.slice(-1), name] : others);
  contrast();
});
contrast();

// Legends: the selected entries stand out in all plots of their section.
for (const legend of all(".legend")) {
  legend.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    const on = button.ariaPressed !== "true", plots = legend.parentElement;
    button.ariaPressed = on;
    for (const curve of all(`.curve.${button.dataset.entry}`, plots)) curve.classList.toggle("on", on);
    plots.classList.toggle("picked", legend.querySelector("[aria-pressed=true]") !== null);
  });
}

// Curves: the values at the pointer, or at a place that the arrow keys move.
const hover = document.body.appendChild(create("div", {className: "hover", hidden: true}));
for (const plot of all(".plot")) {
  const svg = plot.querySelector("svg"), {width, height} = svg.viewBox.baseVal, marker = svg.querySelector(".marker");
  const [x, y] = [svg.dataset.x, svg.dataset.y].map(text => text.split(" ").map(Number));  // low, high, start, end
  const invert = ([low, high, start, end], at) => low + (at - start) / (end - start) * (high - low);
  const format = ([low, high], number) => number.toFixed(Math.min(20, Math.max(0, 3 - Math.floor(Math.log10(high - low)))));
  const labels = new Map(all("[data-entry]", plot.closest(".figures")).map(e => [e.dataset.entry, e.textContent]));
  let lines, place = x[3];
  function show(at, level, left, top) {
    lines ??= all(".line", svg).map(path => ({
      label: labels.get(path.parentNode.classList[1]),
      colour: path.parentNode.getAttribute("stroke"),
      points: path.getAttribute("d").slice(1).split("L").map(point => point.split(" ").map(Number)),
    }));
    const near = lines.map(line => ({...line, point: line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)}));
    near.sort((a, b) => Math.abs(a.point[0] - at) - Math.abs(b.point[0] - at));
    place = near[0].point[0];
    const here = near.filter(line => Math.abs(line.point[0] - place) < 3).sort((a, b) => Math.abs(a.point[1] - level) - Math.abs(b.point[1] - level));
    const rows = here.slice(0, 8).sort((a, b) => a.point[1] - b.point[1]).map(({label, colour, point}) => {
      const key = create("i", {});
      key.style.background = colour;
      return create("div", {}, key, `${format(y, invert(y, point[1]))}  ${label}`);
    });
    marker.setAttribute("d", `M${place} ${y[3]}V${y[2]}`);
    hover.replaceChildren(create("b", {textContent: `step ${Math.round(invert(x, place))}`}), ...rows);
    hover.hidden = false;
    hover.style.left = `${Math.max(0, Math.min(left + 14, innerWidth - hover.offsetWidth - 8))}px`;
    hover.style.top = `${Math.max(0, Math.min(top + 14, innerHeight - hover.offsetHeight - 8))}px`;
  }
  function hide() {
    hover.hidden = true;
    marker.removeAttribute("d");
  }
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    show((event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height, event.clientX, event.clientY);
  });
  plot.addEventListener("keydown", event => {
    const sign = {ArrowLeft: -1, ArrowRight: 1}[event.key], box = svg.getBoundingClientRect();
    if (!sign) return;
    event.preventDefault();
    const at = Math.min(Math.max(place + sign * (x[3] - x[2]) / 40, x[2]), x[3]);
    show(at, y[3], box.left + at / width * box.width, box.top);
    place = at;
  });
  svg.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
}

// Pictures: a slider over milestones, and a large view in which the arrow keys go to the next setting.
for (const slider of all(".wall input")) {
  const wall = slider.closest(".wall"), steps = slider.dataset.steps.split(" ");
  slider.addEventListener("input", () => {
    wall.style.setProperty("--frame", slider.value);
    slider.nextElementSibling.textContent = `step ${steps[slider.value]}`;
  });
}
const dialog = document.querySelector("dialog");
let enlarged;
function enlarge(figure) {
  enlarged = figure;
  dialog.style.setProperty("--frame", figure.closest(".wall").style.getPropertyValue("--frame"));
  dialog.replaceChildren(figure.cloneNode(true));
  if (!dialog.open) dialog.showModal();
}
document.addEventListener("click", event => {
  const frame = event.target.closest(".frame");
  if (!frame || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (dialog.open) dialog.close(); else enlarge(frame.closest("figure"));
});
dialog.addEventListener("keydown", event => {
  const next = {ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling"}[event.key];
  if (next && enlarged[next]) enlarge(enlarged[next]);
});
