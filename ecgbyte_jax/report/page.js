"use strict";
const type = document.getElementById("type");
const why = document.getElementById("why");
const articles = [...document.querySelectorAll("article")];
function filter() {
  for (const one of articles) {
    one.hidden = (type.value && one.dataset.type !== type.value) || (why.value && one.dataset.why !== why.value) ? true : false;
  }
  const shown = articles.filter((one) => !one.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${articles.length} shown`;
}
type.addEventListener("change", filter);
why.addEventListener("change", filter);
document.querySelector("form.filter").addEventListener("submit", (event) => event.preventDefault());
filter();
