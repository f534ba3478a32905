"use strict";
const cards = [...document.querySelectorAll(".card")];
const ended = document.getElementById("ended");

/** Shows the cards that ended where the filter says, and counts them. */
function show() {
  for (const card of cards) card.hidden = ended.value !== "" && card.dataset.ended !== ended.value;
  const number = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = `${number} of ${cards.length} records`;
}

/** The labels that were given, a line of JSON for each. */
function makeLabels() {
  const rows = [];
  for (const card of cards) {
    const chosen = card.querySelector("input[type=radio]:checked");
    if (!chosen) continue;
    const remark = card.querySelector(".remark").value;
    rows.push({ record: card.dataset.record, ended: card.dataset.ended, label: chosen.value, remark });
  }
  return rows.map((row) => JSON.stringify(row) + "\n").join("");
}

/** Saves the labels as a file of the browser's downloads; nothing is sent. */
function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([makeLabels()], { type: "application/jsonlines" }));
  link.download = "audit.jsonl";
  link.click();
  URL.revokeObjectURL(link.href);
}

ended.addEventListener("change", show);
document.getElementById("download").addEventListener("click", download);
document.addEventListener("change", () => {
  const number = makeLabels().split("\n").length - 1;
  document.getElementById("labelled").textContent = number ? `${number} labelled` : "";
});
show();
document.body.dataset.ready = "yes";
