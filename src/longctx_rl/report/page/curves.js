// Curves: the mean over each method's runs with its interval, over steps or cumulative costs.

const AXIS_TITLES = {
  step: "steps", trained_tokens: "trained tokens", flops: "FLOPs (training, sampling and teacher)", wall_seconds: "seconds in steps",
};
const MOST_POINTS = 800;
// An explicit list, because Plotly's default includes a button that uploads the chart.
const BUTTONS = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];

/** Linear interpolation between the points of an increasing grid; null outside. */
function between(grid, values, at) {
  if (!grid.length || at < grid[0] || at > grid[grid.length - 1]) return null;
  let low = 0;
  let high = grid.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (grid[middle] <= at) low = middle;
    else high = middle;
  }
  if (at === grid[low]) return values[low];
  if (at === grid[high]) return values[high];
  return values[low] + (values[high] - values[low]) * (at - grid[low]) / (grid[high] - grid[low]);
}

/** Cumulative cost of a run at a step. */
const cost = (run, axis, step) => axis === "step" ? step : between(runs[run].axes.step, runs[run].axes[axis], step);

/** Centred moving average, over fewer points near the ends. */
function smooth(values, width) {
  const half = (width - 1) / 2;
  return values.map((_, index) => {
    const reach = Math.min(half, index, values.length - 1 - index);
    let sum = 0;
    for (let place = index - reach; place <= index + reach; place += 1) sum += values[place];
    return sum / (2 * reach + 1);
  });
}

/** A run's curve without values that were not finite, smoothed. */
function curve(metric, run, width) {
  const found = data(`metric-${overview.metrics.indexOf(metric)}`).find(([of]) => of === run);
  if (!found) return null;
  const known = (found[1] || runs[run].axes.step.slice(1)).map((step, index) => [step, found[2][index]]).filter(([, value]) => value !== null);
  return { steps: known.map(([step]) => step), values: smooth(known.map(([, value]) => value), width) };
}

/** Mean, interval, number of runs and mean cost at each step of any run of an arm. */
function meanCurve(arm, metric, axis, width) {
  const own = arms[arm].counted.map((run) => [run, curve(metric, run, width)]).filter(([, found]) => found);
  let grid = [...new Set(own.flatMap(([, found]) => found.steps))].sort((one, other) => one - other);
  if (grid.length > MOST_POINTS) {
    const stride = (grid.length - 1) / (MOST_POINTS - 1);
    grid = Array.from({ length: MOST_POINTS }, (_, index) => grid[Math.round(index * stride)]);
  }
  const points = [];
  for (const step of grid) {
    const known = own
      .map(([run, found]) => [between(found.steps, found.values, step), cost(run, axis, step)])
      .filter(([value, spent]) => value !== null && spent !== null);
    if (!known.length) continue;
    const of = known.length;
    const mean = known.reduce((sum, [value]) => sum + value, 0) / of;
    const variance = known.reduce((sum, [value]) => sum + (value - mean) ** 2, 0) / (of - 1);
    const half = of > 1 ? overview.t95[Math.min(of - 2, overview.t95.length - 1)] * Math.sqrt(variance / of) : null;
    points.push({ step, mean, half, of, spent: known.reduce((sum, [, spent]) => sum + spent, 0) / of });
  }
  return points;
}

const rgba = (hex, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${alpha})`;

/** Plotly's traces of an arm. */
function tracesOf(arm, points, metric, axis, width) {
  const { colour, dash, marker } = look(arm);
  const traces = [];
  const banded = points.filter((point) => point.half !== null);
  if (byId("bands").checked && banded.length) {
    traces.push({
      x: [...banded, ...[...banded].reverse()].map((point) => point.spent),
      y: [...banded.map((point) => point.mean + point.half), ...[...banded].reverse().map((point) => point.mean - point.half)],
      fill: "toself", fillcolor: rgba(colour, 0.14), line: { width: 0 }, mode: "lines", hoverinfo: "skip",
    });
  }
  if (byId("single").checked) {
    for (const run of arms[arm].runs) {
      const found = curve(metric, run, width);
      if (!found) continue;
      traces.push({
        x: found.steps.map((step) => cost(run, axis, step)), y: found.values, mode: "lines", line: { color: colour, width: 1 },
        opacity: 0.55, name: runs[run].name, hovertemplate: "%{fullData.name}<br>%{y:.4g}<extra></extra>",
      });
    }
  }
  traces.push({
    x: points.map((point) => point.spent), y: points.map((point) => point.mean), name: arms[arm].name,
    mode: points.length > 40 ? "lines" : "lines+markers",
    line: { color: colour, width: 2.2, dash: DASHES[dash] }, marker: { color: colour, symbol: MARKERS[marker], size: 8 },
    text: points.map((point) => `${point.half === null ? "" : `± ${short(point.half)}, `}${point.of} runs, step ${point.step}`),
    hovertemplate: "%{fullData.name}: %{y:.4g}<br>%{text}<extra></extra>",
  });
  if (points.length > 40) {
    const every = points.filter((_, index) => index % Math.ceil(points.length / 8) === 0);
    traces.push({
      x: every.map((point) => point.spent), y: every.map((point) => point.mean), mode: "markers", hoverinfo: "skip",
      marker: { color: colour, symbol: MARKERS[marker], size: 9 },
    });
  }
  return traces;
}

function chartLayout(metric, axis) {
  const style = getComputedStyle(document.documentElement);
  const [text, grid] = ["--text", "--grid"].map((name) => style.getPropertyValue(name).trim());
  const lines = { gridcolor: grid, zerolinecolor: grid, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 13 }, showlegend: false,
    margin: { l: 10, r: 10, t: 10, b: 10 }, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: text }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: { ...lines, title: { text: AXIS_TITLES[axis] }, rangemode: "tozero", exponentformat: "SI" },
    yaxis: { ...lines, title: { text: metric } },
  };
}

function drawCurves() {
  const metric = byId("metric").value;
  if (!metric) {
    byId("chart-note").textContent = "No run has recorded a metric.";
    return;
  }
  const [axis, width] = [byId("axis").value, Number(byId("smoothing").value)];
  const drawn = shown().map((arm) => [arm, meanCurve(arm, metric, axis, width)]);
  const traces = drawn.flatMap(([arm, points]) => points.length ? tracesOf(arm, points, metric, axis, width) : []);
  Plotly.react(byId("chart"), traces, chartLayout(metric, axis), {
    responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtons: BUTTONS,
  });
  const without = drawn.filter(([, points]) => !points.length).map(([arm]) => arms[arm].name);
  byId("chart-note").textContent = `${metric} over ${AXIS_TITLES[axis]}: the mean over runs at each step, placed at their ` +
    "mean cost at that step, with the 95 % t interval over runs." + (without.length ? ` Not recorded by ${without.join(", ")}.` : "");
  const rows = drawn.filter(([, points]) => points.length).map(([arm, points]) => {
    const last = points[points.length - 1];
    return element(
      "tr", {}, element("th", { scope: "row" }, arms[arm].name), element("td", {}, short(last.mean)),
      element("td", {}, last.half === null ? "–" : `± ${short(last.half)}`), element("td", {}, String(last.of)),
      element("td", {}, String(last.step)), element("td", {}, short(last.spent)));
  });
  const titles = ["method", "mean", "95 %", "runs", "step", AXIS_TITLES[axis]];
  byId("last").replaceChildren(element(
    "table", {}, element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows)));
}

function startCurves() {
  const rooms = [...new Set(overview.metrics.map((name) => name.split("/")[0]))];
  grouped(byId("metric"), rooms.map((room) => [
    room, overview.metrics.filter((name) => name.split("/")[0] === room).map((name) => [name, name])]));
  for (const id of ["metric", "axis", "smoothing", "single", "bands"]) byId(id).addEventListener("change", drawCurves);
  drawCurves();
  parts.push(drawCurves);
}
