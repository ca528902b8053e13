// Shared by all sections: data, elements, numbers, and the colours and markers of methods.

const byId = (id) => document.getElementById(id);
const parsed = new Map();

/** Embedded data; each part is parsed when it is first needed. */
function data(name) {
  if (!parsed.has(name)) parsed.set(name, JSON.parse(byId(`data-${name}`).textContent));
  return parsed.get(name);
}

const overview = data("overview");
const runs = overview.runs;
const arms = overview.arms;

/** An element with attributes and children; text children are never parsed as HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
}

function grouped(select, groups) {
  select.replaceChildren(...groups.map(([label, entries]) => element(
    "optgroup", { label }, ...entries.map(([value, text]) => element("option", { value }, text)))));
}

/** Select the previous or the next option, and wrap around at the ends. */
function turn(select, by) {
  const count = select.options.length;
  if (!count) return;
  select.selectedIndex = (select.selectedIndex + by + count) % count;
  select.dispatchEvent(new Event("change"));
}

const minus = (text) => text.replace("-", "\u2212");

/** A number with three significant digits. */
function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-3)) return minus(value.toExponential(2));
  if (size >= 1e6) {
    const power = Math.min(4, Math.floor(Math.log10(size) / 3));
    return minus(`${(value / 1000 ** power).toPrecision(3)} ${["", "k", "M", "G", "T"][power]}`);
  }
  return minus(size >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));
}

/** A share in percent, with a sign if it is a difference. */
function percent(share, signed) {
  const text = (100 * share).toFixed(1).replace(/^-0\.0$/, "0.0");
  return minus(signed && share >= 0 ? `+${text}` : text);
}

// Okabe and Ito's palette after the text colour. Dashes and markers distinguish methods without colour.
const COLOURS = {
  light: ["#16191d", "#0072B2", "#D55E00", "#009E73", "#B35C92", "#B87D00", "#3E8FBF"],
  dark: ["#eceff2", "#56A0E9", "#F08232", "#2FC79A", "#E39BC4", "#E6B422", "#9AD4F5"],
};
const PLACES = { dgrpo: 0, sft: 1, grpo: 2, kd: 3, opd: 4, opsd: 5, dgrpo_self: 6 };
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SVG_DASHES = ["", "6 3", "2 3", "6 3 2 3", "9 4", "9 3 2 3"];
const MARKERS = ["circle", "square", "triangle-up", "diamond", "cross", "x", "star"];
const SHAPES = ["●", "■", "▲", "◆", "✚", "✖", "★"];

const theme = () => document.documentElement.dataset.theme || "light";

/** Colour, dash and marker of an arm: fixed by its method if each method has one arm. */
function look(arm) {
  const alone = arms.filter((one) => one.algo === arms[arm].algo).length === 1;
  const known = alone && arms.length <= 7 ? PLACES[arms[arm].algo] : undefined;
  const place = known === undefined ? arm : known;
  return {
    colour: COLOURS[theme()][place % 7], dash: place % DASHES.length, marker: place % MARKERS.length,
  };
}

function swatch(arm) {
  const { colour, dash, marker } = look(arm);
  const holder = element("span");
  holder.innerHTML = `<svg class="swatch" aria-hidden="true" viewBox="0 0 38 14"><line x1="1" y1="7" x2="37" y2="7" stroke="${colour}"
    stroke-width="2" stroke-dasharray="${SVG_DASHES[dash]}"/><text x="19" y="11.5" font-size="12" text-anchor="middle"
    fill="${colour}">${SHAPES[marker]}</text></svg>`;
  return holder.firstChild;
}

const titled = (arm, ...more) => element("h3", {}, swatch(arm), arms[arm].name, ...more);

const hidden = new Set();
const shown = () => arms.map((_, arm) => arm).filter((arm) => !hidden.has(arm));

/** Functions that redraw the sections when methods or colours change. */
const parts = [];

function redraw() {
  for (const part of parts) part();
}

function drawToggles() {
  byId("toggles").replaceChildren(...arms.map((one, arm) => element(
    "label", { title: `${one.runs.length} runs` },
    element("input", {
      type: "checkbox", checked: !hidden.has(arm), "data-arm": arm,
      onchange: (event) => {
        if (event.target.checked) hidden.delete(arm);
        else hidden.add(arm);
        redraw();
      },
    }),
    swatch(arm), one.name)));
}

/** Show all methods, or none. */
function setAll(visible) {
  hidden.clear();
  if (!visible) arms.forEach((_, arm) => hidden.add(arm));
  drawToggles();
  redraw();
}

function applyTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = byId("theme").value || (dark ? "dark" : "light");
  drawToggles();
  redraw();
}

const scoreBadge = (score) => element("span", { class: "score" }, `score ${short(score)}`);

/** The parts of a score and other facts in one line. */
function facts(partsOf, more) {
  const known = Object.entries(partsOf).map(([name, value]) => `${name} ${short(value)}`);
  return element("div", { class: "facts" }, [...known, ...more.filter(Boolean)].join(" · "));
}
