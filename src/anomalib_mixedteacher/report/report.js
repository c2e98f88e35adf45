"use strict";
(() => {
  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

  // Pictures: lazy so that the page opens at once; the rest follows in small portions, since a picture that was never
  // in sight would be missing on paper.
  const portion = () => {
    const waiting = document.querySelectorAll("img[loading=lazy]");
    for (const image of [...waiting].slice(0, 40)) image.loading = "eager";
    if (waiting.length) setTimeout(portion, 30);
  };
  addEventListener("load", portion);

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
  for (const heading of document.querySelectorAll(".sortable thead tr:last-child th")) {
    const label = heading.querySelector(".head");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label.textContent;
    button.addEventListener("click", () => sort(heading));
    label.replaceChildren(button);
  }

  // Gallery: a row is shown if it fits every filter.
  const filters = document.querySelector(".filters");
  const rows = [...document.querySelectorAll(".row")];
  const filter = () => {
    const wanted = Object.fromEntries(new FormData(filters));
    for (const row of rows) {
      const { part, data, kind } = row.dataset;
      row.hidden = !(
        (!wanted.part || part.split(" ").includes(wanted.part)) &&
        (!wanted.data || data === wanted.data) &&
        (!wanted.kind || kind === wanted.kind)
      );
    }
    for (const group of document.querySelectorAll(".group")) {
      const own = [...group.querySelectorAll(".row")];
      group.hidden = own.length > 0 && own.every((row) => row.hidden);
    }
    filters.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} images`;
  };
  if (!filters) return;
  filters.addEventListener("change", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
