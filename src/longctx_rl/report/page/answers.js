// Answers of all methods to one evaluation item.

const cellOf = () => data("answers").cells[Number(byId("cell").value)];

function drawItems() {
  options(byId("item"), cellOf() ? cellOf().items.map((item, index) => [index, item.id]) : []);
  drawAnswers();
}

function answerCard([run, step, output, score, partsOf, cut, tokens]) {
  const before = step === 0;
  const name = before ? [element("h3", {}, overview.starts[-1 - run], scoreBadge(score))] : [titled(runs[run].arm, scoreBadge(score))];
  return element(
    "div", { class: "card" }, ...name,
    facts(partsOf, [...(before ? [] : [`seed ${runs[run].seed}`, `step ${step}`]), `${tokens} tokens`]),
    cut ? element("span", { class: "warning" }, "truncated at the token limit") : null,
    element("pre", { tabindex: "0", "aria-label": "answer" }, output || "(empty)"));
}

function drawAnswers() {
  const item = cellOf() && cellOf().items[Number(byId("item").value)];
  if (!item) {
    byId("answer-cards").replaceChildren(element("p", {}, "No run has evaluation records."));
    return;
  }
  const seed = byId("seed").value;
  const answers = item.by.filter(([run, step]) => step > 0 && !hidden.has(runs[run].arm) && (seed === "" || String(runs[run].seed) === seed));
  answers.sort((one, other) => runs[one[0]].arm - runs[other[0]].arm || runs[one[0]].seed - runs[other[0]].seed);
  const before = byId("before").checked ? item.by.filter(([, step]) => step === 0) : [];
  byId("item-text").replaceChildren(...(item.question ? [
    element("blockquote", { tabindex: "0" }, item.question), element("p", {}, `Reference answer: ${item.answer}`)] : []));
  const cards = [...before, ...answers].map(answerCard);
  byId("answer-cards").replaceChildren(...(cards.length ? cards : [element("p", {}, "No selected run has answered this item.")]));
  byId("answers-note").textContent = (item.depth === null ? "" : `Evidence begins at ${Math.round(100 * item.depth)} % of the document. `) +
    `This page contains ${data("answers").cells.reduce((sum, cell) => sum + cell.items.length, 0)} of ${data("answers").asked} items; evals/ of each run has all of them.`;
}

function startAnswers() {
  options(byId("cell"), data("answers").cells.map((cell, index) => [
    index, `${cell.suite}: ${cell.task}${cell.length ? `, ${cell.length} tokens` : ""}`]));
  const seeds = [...new Set(runs.map((run) => run.seed))].sort((one, other) => one - other);
  options(byId("seed"), [...seeds.map((seed) => [seed, String(seed)]), ["", "all"]]);
  byId("cell").addEventListener("change", drawItems);
  for (const id of ["item", "seed", "before"]) byId(id).addEventListener("change", drawAnswers);
  byId("item-back").addEventListener("click", () => turn(byId("item"), -1));
  byId("item-on").addEventListener("click", () => turn(byId("item"), 1));
  drawItems();
  parts.push(drawAnswers);
}
