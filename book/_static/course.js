// A page opened from a file may not fetch another one: search then lists titles, without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Tables that are too wide for a phone, or whose cells are columns of single words, are stacked there.
const phone = matchMedia("(max-width: 600px)");

function stack() {
  for (const table of document.querySelectorAll("article table.table")) {
    table.classList.remove("stacked");
    const cells = [...table.querySelectorAll("tbody td")];
    const cramped = cells.some(cell => cell.offsetHeight > 2 * cell.offsetWidth);
    if (!phone.matches || (!cramped && table.offsetWidth <= table.parentElement.clientWidth)) continue;
    const heads = [...table.querySelectorAll("thead tr:last-child > *")].map(head => head.textContent.trim());
    for (const cell of cells)
      if (heads[cell.cellIndex] && cell.textContent.trim()) cell.dataset.head = heads[cell.cellIndex];
    table.classList.add("stacked");
  }
}

// Formulas that are too wide are drawn smaller, while they can still be read; then they scroll.
function shrink() {
  for (const formula of document.querySelectorAll('article mjx-container[display="true"]')) {
    formula.style.fontSize = "";
    const share = formula.clientWidth / formula.scrollWidth;
    if (phone.matches && share < 1) formula.style.fontSize = `${Math.max(65, Math.floor(100 * share))}%`;
  }
}

function fit() {
  stack();
  shrink();
}

addEventListener("load", async () => {
  fit();
  await window.MathJax?.startup?.promise;
  fit();
});
phone.addEventListener("change", fit);
document.addEventListener("toggle", fit, true); // what was folded has no width
