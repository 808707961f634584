"use strict";
// The leaderboard in the browser: its headings sort it, the fields above it filter it.
// Without this script the page shows all trials, the best one first.

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.value ?? cell.textContent).trim();
  const number = Number(text);
  return text === "" || Number.isNaN(number) ? text : number;
}

// Numbers come before words, and what is missing last, whichever way the table is sorted.
function order(one, other, sign) {
  if (one === "" || other === "") return (one === "") - (other === "");
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
}

// A bound such as `dropout<0.1` on the column of that name, or a word that must occur in the row.
function condition(word, headings) {
  const [, name, sign, limit] = word.match(/^([^<>=]+)(<=|>=|<|>|=)([^<>=]+)$/) ?? [];
  if (!name) return (row) => row.textContent.toLowerCase().includes(word);

  const column = headings.findIndex((heading) => heading.name === name || heading.path === name);
  if (column < 0) return null;
  const number = Number(limit);
  const tests = {
    "<": (value) => value < number,
    "<=": (value) => value <= number,
    ">": (value) => value > number,
    ">=": (value) => value >= number,
    "=": (value) => value === number || String(value).toLowerCase() === limit,
  };
  return (row) => {
    const value = valueOf(row, column);
    return value !== "" && tests[sign](value);
  };
}

function setUp(table, form) {
  const body = table.tBodies[0];
  const atFirst = Number(table.dataset.atFirst); // rows that are shown until all are asked for
  const cells = [...table.tHead.rows[0].cells];
  const headings = cells.map((cell) => ({
    name: cell.textContent.trim().toLowerCase().replaceAll(" ", "_"),
    path: cell.title.toLowerCase(),
  }));
  const { words, status, feasible, all } = form.elements;
  const count = form.querySelector("output");

  function filter() {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const conditions = asked.map((word) => condition(word, headings));
    const unknown = asked.filter((_, place) => conditions[place] === null);
    if (status.value) conditions.push((row) => row.dataset.status === status.value);
    if (feasible?.checked) conditions.push((row) => row.dataset.status !== "infeasible");

    let fitting = 0;
    let shown = 0;
    for (const row of body.rows) {
      const fits = !unknown.length && conditions.every((keeps) => keeps(row));
      fitting += fits;
      row.hidden = !fits || (!all.checked && fitting > atFirst);
      shown += !row.hidden;
    }
    count.value = `${shown} of ${body.rows.length} trials`;
    if (fitting > shown) count.value += `, ${fitting} fit`;
    if (unknown.length) count.value = `no column for ${unknown.join(", ")}`;
  }

  function sort(column) {
    const up = cells[column].getAttribute("aria-sort") !== "ascending";
    for (const cell of cells) cell.removeAttribute("aria-sort");
    cells[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => [valueOf(row, column), row]);
    keyed.sort(([one], [other]) => order(one, other, up ? 1 : -1));
    body.append(...keyed.map(([, row]) => row));
    filter();
  }

  cells.forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => sort(column));
    cell.append(button);
  });
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  all.closest("label").hidden = body.rows.length <= atFirst;
  form.hidden = false;
  filter();
}

const board = document.querySelector("#leaderboard table");
if (board) setUp(board, document.querySelector("#leaderboard form"));
