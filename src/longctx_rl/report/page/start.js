// Fill the controls, draw and listen: the table first, the chart once its library has loaded, then the sections below.

const broken = runs.filter((run) => run.problems.length).length;
byId("summary").textContent = `${runs.length} runs of ${arms.length} methods, longctx_rl ${overview.version}.` +
  (broken ? ` ${broken} runs have problems: see the last section.` : "");
byId("all").addEventListener("click", () => setAll(true));
byId("none").addEventListener("click", () => setAll(false));
byId("theme").addEventListener("change", applyTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
startResults();
applyTheme();
document.addEventListener("DOMContentLoaded", () => {
  startCurves();
  requestAnimationFrame(() => setTimeout(() => {
    performance.mark("drawn");
    for (const start of [startMaps, startAnswers, startRollouts, startRuns]) start();
    performance.mark("complete");
  }));
});
