// Completions that methods sampled for the same prompt during training, with each token's gap to the teacher.

const FULL = 4; // nats at which the colour of a token is saturated
const FAR = 1; // nats from which a token is also underlined

const promptsOf = () => (data("rollouts").steps[Number(byId("rollout-step").value)] || { prompts: [] }).prompts;

function drawPrompts() {
  options(byId("prompt"), promptsOf().map((prompt, index) => [index, prompt.id]));
  drawRollouts();
}

const tint = (gap) => `background: rgba(var(--${gap > 0 ? "above" : "below"}), ${Math.min(Math.abs(gap) / FULL, 1) * 0.75})`;

/** A completion's text; token by token where each token's gap to the teacher is known. */
function completionText(one) {
  if (!one.texts) return [one.text || "(empty)"];
  if (!byId("gap").checked) return [one.texts.join("")];
  return one.texts.map((text, index) => {
    const gap = one.gaps[index];
    if (Math.abs(gap) < 0.05) return text;
    const title = `${JSON.stringify(text)}: ${gap > 0 ? "+" : ""}${minus(String(gap))} nats`;
    return element("span", { class: Math.abs(gap) >= FAR ? "token far" : "token", style: tint(gap), title }, text);
  });
}

/** The tokens with the largest gaps between student and teacher, as text. */
function furthest(one) {
  if (!one.gaps) return "";
  const far = one.gaps.map((gap, index) => [gap, one.texts[index]]).filter(([gap]) => Math.abs(gap) >= FAR);
  far.sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  return far.length ? `largest gaps: ${far.slice(0, 3).map(([gap, text]) => `${JSON.stringify(text)} ${gap > 0 ? "+" : ""}${minus(String(gap))}`).join(", ")}` : "";
}

function completionBlock(one, index) {
  const advantage = one.advantage === null || one.advantage === undefined ? "" : `advantage ${short(one.advantage)}`;
  return element(
    "div", { class: "completion" },
    element("h3", {}, `${index + 1}`, element("span", { class: "score" }, `reward ${short(one.reward)}`)),
    facts(one.parts, [advantage, `${one.tokens} tokens`, one.finish_reason === "length" ? "truncated" : "", furthest(one)]),
    element("pre", { tabindex: "0", "aria-label": "completion" }, ...completionText(one)));
}

/** What the teacher of a run reads instead of the student's prompt. */
function viewBlock(view) {
  return view ? [element("details", { open: "" }, element("summary", {}, `the teacher reads (${view[0]})`), element("blockquote", { tabindex: "0" }, `… ${view[1]}`))] : [];
}

function drawRollouts() {
  const prompt = promptsOf()[Number(byId("prompt").value)];
  if (!prompt) {
    byId("rollout-cards").replaceChildren(element("p", {}, "No run has saved rollouts: set logging.rollouts_every to the number of steps between them."));
    return;
  }
  const mine = prompt.by.filter(([run]) => !hidden.has(runs[run].arm));
  mine.sort((one, other) => runs[one[0]].arm - runs[other[0]].arm);
  byId("prompt-text").replaceChildren(element("blockquote", { tabindex: "0" }, `… ${prompt.prompt}`), element("p", {}, `Reference answer: ${prompt.answer}`));
  const cards = mine.map(([run, group]) => element(
    "div", { class: "card" }, titled(runs[run].arm), element("div", { class: "facts" }, runs[run].name),
    ...viewBlock((prompt.views || {})[run]), ...group.map(completionBlock)));
  byId("rollout-cards").replaceChildren(...(cards.length ? cards : [element("p", {}, "No selected method has rollouts of this prompt.")]));
  byId("rollouts-note").textContent = "Completions of the policy at this step, before the step's update; methods that learn from recorded answers " +
    `have none. This page contains ${data("rollouts").steps.length} of ${data("rollouts").saved} saved steps.`;
}

function startRollouts() {
  const legend = [[-4, "−4"], [-1, "−1"], [1, "+1"], [4, "+4 or more"]].map(([gap, text]) =>
    element("span", { class: Math.abs(gap) >= FAR ? "key token far" : "key", style: tint(gap) }, text));
  byId("gap-legend").append(
    "Gap of a token: log p(student) − log p(teacher) in nats. ", ...legend.flatMap((one) => [one, " "]),
    "Orange: the teacher finds the student's token less likely. Blue: the teacher finds it more likely. Underlined: 1 nat or more.");
  options(byId("rollout-step"), data("rollouts").steps.map((one, index) => [index, String(one.step)]));
  byId("rollout-step").selectedIndex = data("rollouts").steps.length - 1;
  byId("rollout-step").addEventListener("change", drawPrompts);
  for (const id of ["prompt", "gap"]) byId(id).addEventListener("change", drawRollouts);
  byId("prompt-back").addEventListener("click", () => turn(byId("prompt"), -1));
  byId("prompt-on").addEventListener("click", () => turn(byId("prompt"), 1));
  drawPrompts();
  parts.push(drawRollouts);
}
