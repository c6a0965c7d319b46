"use strict";
const form = document.querySelector("form.filter");
if (form) {
  const type = document.getElementById("type");
  const verdict = document.getElementById("verdict");
  const articles = [...document.querySelectorAll("article")];
  function filter() {
    for (const one of articles) {
      one.hidden = Boolean((type.value && one.dataset.type !== type.value) || (verdict.value && one.dataset.verdict !== verdict.value));
    }
    const shown = articles.filter((one) => !one.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${articles.length} shown`;
  }
  type.addEventListener("change", filter);
  verdict.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = articles.length === 0;
  filter();
}

// What is wider than the page can be scrolled by the keys; what fits is no stop of the tab key.
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".scroll")) observer.observe(box);

// Terms are links to their explanations; with a script these are shown beside them.
const tip = document.getElementById("tip");
function hide() {
  tip.hidden = true;
  document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
}
function show(term) {
  hide();
  tip.textContent = document.getElementById(term.hash.slice(1)).nextElementSibling.textContent;
  tip.hidden = false;
  term.setAttribute("aria-describedby", "tip");
  const place = term.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = place.bottom + tip.offsetHeight + 6 < innerHeight;
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${below ? place.bottom + 4 : place.top - tip.offsetHeight - 4}px`;
}
for (const term of document.querySelectorAll("a.term")) {
  term.addEventListener("mouseenter", () => show(term));
  term.addEventListener("mouseleave", hide);
  term.addEventListener("focus", () => show(term));
  term.addEventListener("blur", hide);
  term.addEventListener("click", (event) => { event.preventDefault(); show(term); });
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
addEventListener("scroll", hide, { capture: true, passive: true });
