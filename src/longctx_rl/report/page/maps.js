// Length and depth: a table for each method, coloured by its numbers.

// Cividis, which is safe for colour-blind readers, and blue to orange around zero.
const SCORE_SCALE = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const GAIN_SCALE = [[0, 90, 150], [120, 175, 215], [245, 245, 245], [245, 175, 110], [190, 75, 0]];

function colourAt(scale, share) {
  const place = Math.max(0, Math.min(1, share)) * (scale.length - 1);
  const low = Math.min(Math.floor(place), scale.length - 2);
  const mixed = scale[low].map((value, index) => Math.round(value + (scale[low + 1][index] - value) * (place - low)));
  const light = (0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]) > 125;
  return `background: rgb(${mixed.join(",")}); color: ${light ? "#111" : "#fff"}`;
}

/** A cell: a number, and how many answers or pairs of answers to the same item it is computed from. */
function mapCell(found, gain, all) {
  const kind = all ? "all" : null;
  const [value, count] = found ? found.slice(gain ? 2 : 0) : [null];
  if (value === null) return element("td", { class: kind }, "–");
  const style = gain ? colourAt(GAIN_SCALE, value / 2 + 0.5) : colourAt(SCORE_SCALE, value);
  return element("td", { class: kind, style }, gain ? percent(value, true) : percent(value), element("small", {}, String(count)));
}

function drawMaps() {
  const found = data("maps")[Number(byId("map-task").value)];
  if (!found) {
    byId("heat").replaceChildren(element("p", {}, "No run has evaluation records."));
    return;
  }
  const gain = byId("map-values").value === "gain";
  const depths = Array.from({ length: overview.depths }, (_, depth) =>
    `${100 * depth / overview.depths}–${100 * (depth + 1) / overview.depths} %`);
  const entries = [...(gain ? [] : [0]), ...shown().map((arm) => arm + 1)];
  byId("heat").replaceChildren(...entries.map((entryOf) => {
    const rows = found.lengths.map((length, row) => element(
      "tr", {}, element("th", { scope: "row" }, length ? String(length) : "any"),
      ...found.entries[entryOf][row].map((cell, depth) =>
        mapCell(cell, gain, depth === overview.depths))));
    const head = element("tr", {}, element("th", { scope: "col" }, "length"),
      ...[...depths, "all"].map((title) => element("th", { scope: "col" }, title)));
    return element(
      "div", { class: "card heat" }, entryOf ? titled(entryOf - 1) : element("h3", {}, "before training"),
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }));
}

function startMaps() {
  options(byId("map-task"), data("maps").map((one, index) => [index, `${one.suite}: ${one.task}`]));
  for (const id of ["map-task", "map-values"]) byId(id).addEventListener("change", drawMaps);
  drawMaps();
  parts.push(drawMaps);
}
