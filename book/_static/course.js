// A page opened from a file may not fetch another one: search then lists titles, without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What is too wide for a phone is fitted to it: first all is measured, then all is changed,
// since every change between two measurements would lay out the page anew.
const phone = matchMedia("(max-width: 600px)");

// Tables that are too wide, or whose cells are columns of single words, are stacked.
function stack(part) {
  const tables = [...part.querySelectorAll("table.table")];
  for (const table of tables) table.classList.remove("stacked");
  if (!phone.matches) return;
  const cellsOf = table => [...table.querySelectorAll("tbody td")];
  const crowded = tables.filter(table => table.offsetWidth > table.parentElement.clientWidth
    || cellsOf(table).some(cell => cell.offsetHeight > 2 * cell.offsetWidth));
  for (const table of crowded) {
    const heads = [...table.querySelectorAll("thead tr:last-child > *")]
      .map(head => head.textContent.trim().replace(/[^?:.!]$/, "$&:"));
    for (const cell of cellsOf(table))
      if (heads[cell.cellIndex] && cell.textContent.trim()) cell.dataset.head = heads[cell.cellIndex];
    table.classList.add("stacked");
  }
}

// Formulas that are too wide are drawn smaller, while they can still be read; then they scroll.
function shrink(part) {
  const formulas = [...part.querySelectorAll('mjx-container[display="true"]')];
  for (const formula of formulas) formula.style.fontSize = formula.dataset.size ??= formula.style.fontSize;
  if (!phone.matches) return;
  const shares = formulas.map(formula => formula.clientWidth / formula.scrollWidth);
  formulas.forEach((formula, i) => {
    const percent = shares[i] * (parseFloat(formula.dataset.size) || 100);
    if (shares[i] < 1) formula.style.fontSize = `${Math.max(55, Math.floor(percent))}%`;
  });
}

function fit(part) {
  stack(part);
  shrink(part);
}

const article = () => document.querySelector("article") ?? document.body;
addEventListener("load", async () => {
  fit(article());
  await window.MathJax?.startup?.promise;
  fit(article());
});
phone.addEventListener("change", () => fit(article()));
document.addEventListener("toggle", event => fit(event.target), true); // what was folded had no width
