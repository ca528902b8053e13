// Comparison of configurations, and the state of each run.

/** The value of a key in a run; null if the run does not have it. */
function setting(key, run) {
  const { values, places } = data("config");
  return places[key][run] < 0 ? null : values[key][places[key][run]];
}

function drawConfig() {
  const { keys } = data("config");
  const [left, right] = [Number(byId("left").value), Number(byId("right").value)];
  const all = byId("same").checked;
  const rows = keys.map((name, key) => [name, setting(key, left), setting(key, right)]).filter(([, a, b]) => all || a !== b);
  byId("config-note").textContent = `${rows.filter(([, a, b]) => a !== b).length} of ${keys.length} keys differ.`;
  const cells = rows.map(([name, a, b]) => element(
    "tr", {}, element("th", { scope: "row", class: "text" }, name),
    ...[a, b].map((value) => element("td", { class: a !== b ? "text wide best" : "text wide" }, value ?? "–"))));
  byId("diff").replaceChildren(element(
    "table", {}, element("thead", {}, element("tr", {}, ...["key", runs[left].name, runs[right].name].map((title) =>
      element("th", { scope: "col", class: "text" }, title)))), element("tbody", {}, ...cells)));
}

function drawRuns() {
  const only = byId("only-problems").checked;
  const listed = runs.filter((run) => (!only || run.problems.length) && !hidden.has(run.arm));
  const whole = runs.filter((run) => !run.problems.length).length;
  byId("problems-note").textContent = whole === runs.length ? "No run has problems." :
    `${runs.length - whole} of ${runs.length} runs have problems. Everything that can be read of them is used above.`;
  const titles = ["run", "method", "seed", "state", "steps", "trained tokens", "FLOPs", "seconds", "commit", "problems"];
  const rows = listed.map((run) => {
    const ends = ["step", "trained_tokens", "flops", "wall_seconds"].map((axis) => run.axes[axis][run.axes[axis].length - 1]);
    return element(
      "tr", {}, element("th", { scope: "row", class: "text" }, run.name), element("td", { class: "text" }, arms[run.arm].name),
      element("td", {}, run.seed < 0 ? "–" : String(run.seed)),
      element("td", { class: "text" }, run.finished ? "finished" : element("span", { class: "warning" }, "not finished")),
      ...ends.map((end) => element("td", {}, short(end))), element("td", { class: "text" }, run.commit || "–"),
      element("td", { class: "text" }, run.problems.length ?
        element("ul", { class: "problems" }, ...run.problems.map((problem) => element("li", {}, problem))) : "none"));
  });
  byId("run-list").replaceChildren(element(
    "table", {}, element("thead", {}, element("tr", {}, ...titles.map((title) =>
      element("th", { scope: "col", class: ["run", "method", "state", "commit", "problems"].includes(title) ? "text" : null }, title)))),
    element("tbody", {}, ...rows)));
}

function startRuns() {
  const names = runs.map((run, index) => [index, run.name]);
  options(byId("left"), names);
  options(byId("right"), names);
  byId("right").selectedIndex = Math.max(0, runs.findIndex((run) => run.arm !== runs[0].arm));
  for (const id of ["left", "right", "same"]) byId(id).addEventListener("change", drawConfig);
  byId("only-problems").addEventListener("change", drawRuns);
  drawConfig();
  drawRuns();
  parts.push(drawRuns);
}
