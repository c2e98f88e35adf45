"use strict";
(() => {
  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

  // Tables: a heading becomes a button; the first click puts the best first, a missing value is always last.
  const sort = (heading) => {
    const table = heading.closest("table");
    const again = heading.getAttribute("aria-sort");
    const order = again ? (again === "ascending" ? "descending" : "ascending") : heading.dataset.first;
    for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const compare = (a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
      return sign * (heading.cellIndex ? first - second : first.localeCompare(second));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  };
  for (const heading of document.querySelectorAll(".sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sort(heading));
    heading.replaceChildren(button);
  }

  // Gallery: a row is shown if it fits every filter.
  const filters = document.querySelector(".filters");
  const rows = [...document.querySelectorAll(".row")];
  const filter = () => {
    const { part, data, kind } = Object.fromEntries(new FormData(filters));
    for (const row of rows) {
      row.hidden = !(
        (!part || row.dataset.part.split(" ").includes(part)) &&
        (!data || row.dataset.data === data) &&
        (!kind || row.dataset.kind === kind)
      );
    }
    for (const group of document.querySelectorAll(".group")) {
      group.hidden = Boolean(group.querySelector(".row")) && !group.querySelector(".row:not([hidden])");
    }
    filters.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} images`;
  };
  filters.addEventListener("change", filter);
  filter();
})();
