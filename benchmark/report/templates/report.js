// Sorting and filtering of tables. The pages work without it.
"use strict";

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.querySelectorAll("th[data-sort]")];
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      for (const body of table.tBodies) sort(body, head, up ? 1 : -1);
    });
  }
}

// Rows without a value come last in both directions, and the heading of a section first.
function sort(body, head, sign) {
  const text = "text" in head.dataset;
  const rows = [...body.rows].filter((row) => row.className !== "section").map((row) => {
    const cell = row.cells[head.dataset.sort];
    const shown = cell.dataset.value ?? cell.textContent.trim();
    return { row, value: text ? shown : parseFloat(shown) };
  });
  rows.sort((one, two) => {
    if (text) return sign * one.value.localeCompare(two.value, "en", { numeric: true });
    const lost = Number.isNaN(one.value) - Number.isNaN(two.value);
    return lost || sign * (one.value - two.value) || 0;
  });
  body.append(...rows.map(({ row }) => row));
}

const toolbar = document.querySelector(".toolbar");

// The selected values of an axis, or null for all: nothing ticked means everything.
function wanted(axis, matches) {
  const boxes = [...toolbar.querySelectorAll(`input[name="${axis}"]`)];
  const ticked = boxes.filter((box) => box.checked && box.value);
  const count = toolbar.querySelector(`[data-count="${axis}"]`);
  if (count) count.textContent = ticked.length ? `${ticked.length} of ${boxes.length}` : "all";
  if (!ticked.length && !matches) return null;
  const chosen = ticked.length ? ticked : boxes;
  return new Set(chosen.filter(matches ?? Boolean).map((box) => box.value));
}

const named = (box) => box.labels[0].textContent.trim().toLowerCase();

function filter() {
  const words = toolbar.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (box) => words.every((word) => named(box).includes(word));
  const chosen = { a: wanted("a"), d: wanted("d", words.length ? matches : null), m: wanted("m") };
  const axes = Object.entries(chosen).filter(([, values]) => values);
  for (const element of document.querySelectorAll("main :is([data-a], [data-d], [data-m])")) {
    const { dataset } = element;
    element.hidden = axes.some(([axis, values]) => axis in dataset && !values.has(dataset[axis]));
  }
  for (const head of document.querySelectorAll("th[colspan][data-a]")) {
    const below = `th:not([colspan])[data-a="${head.dataset.a}"]:not([hidden])`;
    head.colSpan = Math.max(1, head.closest("thead").querySelectorAll(below).length);
  }
  for (const { rows: [section, ...own] } of document.querySelectorAll("tbody:has(> .section)")) {
    section.hidden = own.every((row) => row.hidden);
  }
  const rows = [...document.querySelectorAll("table[data-sortable] tbody tr:not(.section)")];
  const shown = rows.filter((row) => !row.hidden).length;
  toolbar.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
}

// Close an open list on Escape and on a click outside, as a menu does.
function close(event) {
  for (const list of toolbar.querySelectorAll("details[open]")) {
    if (event.key ? event.key === "Escape" : !list.contains(event.target)) {
      if (event.key && list.contains(document.activeElement)) list.firstElementChild.focus();
      list.open = false;
    }
  }
}

if (toolbar) {
  const filters = toolbar.parentElement;
  filters.hidden = false;
  filters.open = !matchMedia("(max-width: 40rem)").matches;
  document.addEventListener("click", close);
  document.addEventListener("keydown", close);
  toolbar.addEventListener("input", filter);
  toolbar.addEventListener("submit", (event) => event.preventDefault());
  toolbar.addEventListener("reset", () => setTimeout(filter));
  filter();
}
