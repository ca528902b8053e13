// The results table.

let sorting = { column: -1, up: true };

/** A row's entry for a column: its text, and the number that it is sorted by. */
function entry(row, column, values) {
  const { groups, costs } = overview.table;
  const own = groups.flatMap((group) => group.columns).length;
  if (column >= own) {
    const spent = row.cost[column - own];
    if (!spent) return { text: "–", sorted: null };
    const [mean, low, high] = spent;
    return { text: short(mean), small: low < high ? `${short(low)} – ${short(high)}` : "", sorted: mean };
  }
  const found = row[values][column];
  if (!found) return { text: "–", sorted: null };
  const [value, low, high, of, families, detectable] = found;
  const signed = values === "gain";
  const bounds = low === null ? (of > 1 ? "" : "one run") : `${percent(low, signed)} to ${percent(high, signed)}`;
  return {
    text: percent(value, signed), small: bounds, sorted: value, hint: `${of} runs, ${families} item families`
      + (detectable === null ? "" : `; minimum detectable difference ${percent(detectable)} points (80 % power, 5 % level)`),
  };
}

/** Titles of the selected columns, with their indices. */
function chosenColumns() {
  const { groups, costs } = overview.table;
  const all = groups.map((group) => group.columns);
  const starts = all.map((_, index) => all.slice(0, index).flat().length);
  const group = Number(byId("columns").value);
  const own = all[group].map((title, index) => [title, starts[group] + index]);
  return [...own, ...costs.map((title, index) => [title, all.flat().length + index])];
}

function drawResults() {
  const values = byId("values").value;
  const columns = chosenColumns();
  const places = columns.map(([, place]) => place);
  let rows = overview.table.rows.filter((row) => row.arm < 0 ? values === "score" : !hidden.has(row.arm));
  if (places.includes(sorting.column)) {
    const key = (row) => entry(row, sorting.column, values).sorted;
    rows = [...rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sorting.up ? a - b : b - a;
    });
  }
  const trained = rows.filter((row) => row.arm >= 0);
  const costFrom = overview.table.groups.flatMap((group) => group.columns).length;
  const best = new Map(places.filter((place) => place < costFrom).map((place) => [
    place, Math.max(...trained.map((row) => entry(row, place, values).sorted ?? -Infinity))]));
  const heading = columns.map(([title, place]) => element(
    "th", { scope: "col", "aria-sort": sorting.column !== place ? "none" : sorting.up ? "ascending" : "descending" },
    element("button", {
      type: "button", "data-column": place,
      onclick: () => {
        sorting = { column: place, up: sorting.column === place ? !sorting.up : false };
        drawResults();
        byId("table").querySelector(`[data-column="${place}"]`).focus();
      },
    }, title)));
  const body = rows.map((row) => element(
    "tr", {}, element("th", { scope: "row" }, row.label),
    ...places.map((place) => {
      const { text, small, sorted, hint } = entry(row, place, values);
      const top = row.arm >= 0 && trained.length > 1 && sorted !== null && sorted === best.get(place);
      return element("td", { class: top ? "best" : null, title: hint }, text, small ? element("small", {}, small) : null);
    })));
  byId("table").replaceChildren(element(
    "table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "method"), ...heading)),
    element("tbody", {}, ...body)));
}

function startResults() {
  options(byId("columns"), overview.table.groups.map((group, index) => [index, group.name]));
  if (!overview.table.groups[0].columns.length) byId("columns").value = "1";
  byId("columns").addEventListener("change", drawResults);
  byId("values").addEventListener("change", drawResults);
  parts.push(drawResults);
}
