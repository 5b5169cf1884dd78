// What the report does beside being read: theme, sorting, filtering, the difference to a reference, linked rows.
// The masks are viewer.js. Everything shown is put in by textContent: no string of a run becomes markup.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const content = (id) => JSON.parse(document.getElementById(id).textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function theme() {
  const button = $("#theme");
  const names = ["auto", "light", "dark"];
  const show = (name) => {
    document.documentElement.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
  };
  let now = "auto";
  try { now = localStorage.getItem("zoo-theme") || "auto"; } catch { /* a file may have no storage */ }
  show(names.includes(now) ? now : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
    show(next);
    try { localStorage.setItem("zoo-theme", next); } catch { /* it holds until the page is closed */ }
  });
}

// ---------------------------------------------------------------- tables

function sortable(table) {
  for (const head of $$("th[data-kind]", table)) {
    $("button", head).addEventListener("click", () => {
      const numbers = head.dataset.kind === "number";
      const before = head.getAttribute("aria-sort");
      const order = before === "none" ? (numbers ? "descending" : "ascending")
        : before === "descending" ? "ascending" : "descending";
      $$("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      sort(table, head.cellIndex, numbers, order === "ascending" ? 1 : -1);
    });
  }
}

function sort(table, column, numbers, sign) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if (!numbers) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === undefined || cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (numbers) return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0; // what is not known comes last
    return sign * a.localeCompare(b);
  });
  body.append(...rows.map(([, row]) => row));
}

function leaderboard(controls) {
  const table = document.getElementById(`${controls.dataset.board}-board`);
  const { names, differences } = content(`${controls.dataset.board}-data`);
  const filter = $(".filter", controls), score = $(".score", controls), reference = $(".reference", controls);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === "difference");
  const show = () => {
    const to = Number(reference.value);
    head.title = `${score.value} less that of ${names[to]}, with the 95 % interval of the paired difference`;
    for (const cell of $$("td.difference", table)) {
      const found = differences[score.value][Number(cell.dataset.place)][to];
      cell.replaceChildren();
      cell.classList.remove("better", "worse");
      cell.removeAttribute("title");
      cell.dataset.value = found ? found[0] : "";
      if (!found) { cell.textContent = Number(cell.dataset.place) === to ? "reference" : "–"; continue; }
      const [delta, low, high, p] = found;
      cell.append(signed(delta));
      if (low === undefined) continue;
      cell.append(element("small", {}, `${signed(low, 1)} to ${signed(high, 1)}`));
      cell.title = `p = ${p < 0.001 ? "below 0.001" : p.toFixed(3)}, two-sided, adjusted for the rows of the table (Holm)`;
      if (low > 0) cell.classList.add("better");
      if (high < 0) cell.classList.add("worse");
    }
  };
  score.addEventListener("change", show);
  reference.addEventListener("change", show);
  show();
}

const signed = (value, digits = 2) => {
  const text = (100 * value).toFixed(digits);
  return Number(text) > 0 ? `+${text}` : text.replace("-", "−");
};

// A row under the pointer is shown wherever it is drawn within its comparison.
function linked(section) {
  const show = (event, on) => {
    const row = event.target.closest("[data-row]");
    if (!row) return;
    section.classList.toggle("linking", on);
    $$(`[data-row="${row.dataset.row}"]`, section).forEach((other) => other.classList.toggle("linked", on));
  };
  section.addEventListener("pointerover", (event) => show(event, true));
  section.addEventListener("pointerout", (event) => show(event, false));
}

function start() {
  theme();
  $$("table").forEach(sortable);
  $$(".controls[data-board]").forEach(leaderboard);
  $$("section.comparison").forEach(linked);
  $$(".viewer").forEach(viewer);
}
