// Follows trace.js in one module. ECGs are drawn from their samples; without a script their pictures are shown.
for (const host of document.querySelectorAll("[data-trace]")) {
  const { name, rate, leads, signal, original, attention, seen } = JSON.parse(host.dataset.trace);
  const byLead = (values) => Object.fromEntries(leads.map((lead, i) => [lead, values.slice((i * values.length) / leads.length, ((i + 1) * values.length) / leads.length)]));
  const trace = new Trace(host, { name, rate, microvolts: byLead(readSamples(signal)), original: original && byLead(readSamples(original)) });
  // Runs of equal weights, as (samples, weight) in one list.
  const weights = attention?.flatMap((value, i) => (i % 2 ? Array(attention[i - 1]).fill(value) : []));
  const cut = seen && Object.fromEntries(leads.map((lead, i) => [lead, seen[i]]));
  if (weights) trace.paint({ name: "the answer", rate, start: 0, weights: byLead(weights), seen: cut });
}

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
