// The page: draws each document that the server sends. All text is set as text, never as markup.

import { barChart, lineChart, number } from "./charts.js";
import { startViewer, showRewarded } from "./viewer.js";

const byId = (id) => document.getElementById(id);

/** An element with text or children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

// The key comes after the #, so that it is in no log; it leaves the address bar at once.
const KEY = "page-key";
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname);
}

/** Sends a request; returns the answer, or throws an Error with the server's words. */
export async function send(path, body) {
  const headers = { "x-page-key": sessionStorage.getItem(KEY) ?? "" };
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `the page's server answered ${answer.status}`);
  return value;
}

const seconds = (value) => (value === null || value === undefined ? "unknown" : `${number(value, 1)} s`);
const percent = (value) => (value === null || value === undefined ? "unknown" : `${number(100 * value, 1)}%`);
const timeOf = (text) => new Date(text).toISOString().slice(11, 19);
/** Text that may be very long: two lines of it. */
export const clipped = (text) => make("span", { class: "clip", dir: "auto" }, String(text).slice(0, 300));

let paused = false;
let latest = null;

const stream = new EventSource("api/events");
stream.addEventListener("message", (event) => {
  latest = JSON.parse(event.data);
  byId("connection").textContent = "● live";
  byId("error").hidden = !latest.error;
  if (latest.error) {
    byId("error").textContent = `The page cannot read everything: ${latest.error}`;
  } else {
    show(latest);
  }
});
stream.addEventListener("error", () => {
  byId("connection").textContent = "○ not connected: the run has ended, or the page's server has. Trying again …";
});

function show(state) {
  byId("settings").textContent = [state.root, state.settings].filter(Boolean).join(": ");
  byId("clock").textContent = `${timeOf(state.now)} UTC`;
  showLearning(state.learning, state);
  showWrong(state.wrong);
  showChoices(state.choices, state.slot);
  if (!paused) showStream(state.stream);
  showTimeline(state.timeline);
  showRewarded(state);
}

// ---- Is it learning?

function tile(name, figure, ...words) {
  const kind = figure instanceof Node ? "figure name" : "figure";
  return make("div", {}, make("dt", {}, name), make("dd", { class: kind }, figure), make("dd", {}, ...words));
}

function showLearning(learning, state) {
  const full = learning.points.filter((point) => point.number > 0 && point.decisions > 0);
  const now = full.at(-1);
  const { reference, serving } = learning;
  const tiles = [];
  if (now && now.oracle !== null) {
    const share = now.expected / now.oracle;
    const first = full[0];
    tiles.push(tile("Reward, of the best possible", percent(share),
      `${state.slot} ${now.number}; in the first: ${percent(first.oracle ? first.expected / first.oracle : null)}`));
  } else {
    tiles.push(tile("Reward per decision", number(now?.reward), now ? `${state.slot} ${now.number}` : "no decision yet"));
  }
  if (reference) {
    tiles.push(tile("For comparison", number(reference.oracle, 2),
      `the best possible; the best fixed item: ${number(reference.best_fixed, 2)}, a uniform choice: ${number(reference.uniform, 2)}`));
  }
  const fresh = full.findLast((point) => point.freshness_seconds !== null);
  const age = serving?.trained_until ? (new Date(state.now) - new Date(serving.trained_until)) / 1000 : null;
  tiles.push(tile("Freshness", seconds(fresh?.freshness_seconds),
    `mean time from a reward to a policy that learned from it; what serves has learned from rewards up to ${seconds(age)} ago`));
  if (serving) {
    const words = make("span", {}, `since ${timeOf(serving.since)}; ${serving.algorithm}, ${serving.exploration}; trained on ` +
      `${number(serving.records)} decisions of ${serving.windows} windows. ${serving.beside ?? ""}`);
    tiles.push(tile("Serves", clipped(serving.version), words));
  } else {
    tiles.push(tile("Serves", "nothing yet", "the first policy is being trained"));
  }
  byId("learning-tiles").replaceChildren(...tiles);

  const numbers = full.map((point) => point.number);
  const lines = [{ name: "reward that came", kind: "observed", values: full.map((point) => point.reward) }];
  if (full.some((point) => point.oracle !== null)) {
    lines.push({ name: "expected reward", kind: "served", values: full.map((point) => point.expected) });
    lines.push({ name: "best possible", kind: "oracle", values: full.map((point) => point.oracle) });
  }
  if (reference) {
    lines.push({ name: "best fixed item", kind: "fixed", values: full.map(() => reference.best_fixed) });
    lines.push({ name: "uniform choice", kind: "uniform", values: full.map(() => reference.uniform) });
  }
  byId("reward-chart").replaceChildren(full.length ? lineChart("Reward per decision", numbers, lines, state.slot)
    : make("p", { class: "note" }, "No decision has been served yet."));
  table("reward-table", [state.slot, "decisions", "reward", "expected", "best possible", "fresh after"],
    full.map((point) => [point.number, point.decisions, number(point.reward), number(point.expected), number(point.oracle),
      seconds(point.freshness_seconds)]));
}

function table(id, head, rows) {
  byId(id).replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
      index ? make("td", {}, cell) : make("th", { scope: "row" }, cell))))));
}

// ---- Is anything wrong?

const SIGNS = { ok: "✓ in order", warning: "! look", bad: "✗ wrong", unknown: "? unknown" };

function light(one) {
  const item = make("li", { class: one.colour }, make("p", {}, make("span", { class: "state" }, `${SIGNS[one.colour]}: ${one.name}`),
    " — ", make("span", { dir: "auto" }, one.fact)));
  if (one.meaning) item.append(make("p", {}, one.meaning));
  if (one.advice) item.append(make("p", { class: "note" }, `What to do: ${one.advice}`));
  return item;
}

function showWrong(wrong) {
  const bad = wrong.lights.filter((one) => one.colour === "bad").length;
  const looks = wrong.lights.filter((one) => one.colour === "warning").length;
  const verdict = byId("verdict");
  const words = bad ? `✗ ${bad} ${bad === 1 ? "thing is" : "things are"} wrong${wrong.held ? "; the guard holds the loop" : ""}`
    : looks ? `! Nothing is wrong; ${looks} to look at` : "✓ Nothing is wrong";
  // Only a change is announced.
  if (verdict.textContent !== words) verdict.textContent = words;
  verdict.className = bad ? "bad" : looks ? "warning" : "good";
  const fine = wrong.lights.filter((one) => one.colour === "ok");
  byId("lights").replaceChildren(...wrong.lights.filter((one) => one.colour !== "ok").map(light));
  byId("fine").replaceChildren(...fine.map(light));
  byId("fine-title").textContent = `What is in order (${fine.length})`;
}

// ---- What does it choose?

function showChoices(choices, slot) {
  const latestPoint = latest.learning.points.at(-1);
  byId("choices-note").textContent = latestPoint
    ? `In the latest ${slot}, ${percent(latestPoint.explored)} of the decisions explored (a propensity below 0.5), and ` +
      `${percent(latestPoint.rare)} went to items that had been shown fewer than 50 times.`
    : "Nothing was chosen yet.";
  const share = (value) => (value ? percent(value) : "");
  const rows = choices.items.map((choice) => [clipped(choice.item), ...choice.shares.map(share)]);
  if (rows.length) rows.push(["all others", ...choices.others.map(share)]);
  table("choices-table", ["item", ...choices.slots.map((at) => `${slot} ${at}`)], rows);
  const labels = choices.edges.map((edge) => `≤ ${edge}`);
  byId("propensity-chart").replaceChildren(barChart("Decisions by propensity", labels, choices.propensities));
}

// ---- What did it do just now?

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  event.target.textContent = paused ? "Go on" : "Pause";
});

function showStream(decided) {
  const list = byId("decisions");
  // A button that has the focus stays where it is, with its decision.
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  list.replaceChildren(...decided.slice(0, 20).map(({ item, decision }) => {
    const reward = decision.reward === null ? "no reward yet"
      : `reward ${number(decision.reward, 2)} after ${seconds(decision.reward_seconds)}${decision.late ? ", too late" : ""}`;
    const name = make("span", { class: "item" }, clipped(item));
    const button = make("button", { type: "button", "data-id": decision.decision_id },
      make("span", {}, timeOf(decision.decided_at)), name, make("span", {}, `probability ${number(decision.propensity)}; ${reward}`));
    button.addEventListener("click", () => open(decision.decision_id));
    return make("li", {}, button);
  }));
  if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

const dialog = byId("decision");
byId("close").addEventListener("click", () => dialog.close());

export async function open(decisionId) {
  const body = byId("decision-body");
  body.replaceChildren(make("p", {}, "Reading …"));
  dialog.showModal();
  try {
    body.replaceChildren(...explained(await send(`api/decisions/${encodeURIComponent(decisionId)}`)));
  } catch (error) {
    body.replaceChildren(make("p", { class: "bad" }, error.message));
  }
}

function explained(found) {
  const { decision } = found;
  const same = found.replayed_action === decision.action &&
    Math.abs(found.replayed_propensity - decision.propensity) <= 1e-9 * decision.propensity;
  const rewards = found.rewards.length
    ? found.rewards.map((one) => `${number(one.reward, 2)} at ${timeOf(one.occurred_at)}`).join(", ") : "none came";
  const parts = [
    make("p", {}, make("strong", {}, clipped(found.item)), ` chosen with probability ${number(decision.propensity, 4)}. Reward: ${rewards}.`),
    make("p", { class: same ? "good" : "bad" }, same
      ? "✓ Replayed: the same observation gives the same item with the same probability."
      : `✗ Replayed: item ${found.replayed_action} with probability ${number(found.replayed_propensity, 4)}. The log contradicts the policy.`),
    make("p", { class: "note" }, `Decision ${decision.decision_id} of ${timeOf(decision.decided_at)} UTC, by ${decision.policy_version} ` +
      `(${found.algorithm}, ${found.exploration}; trained on ${number(found.trained_records)} decisions of ${found.trained_windows} windows)` +
      (decision.user_id ? `, for viewer ${decision.user_id}.` : ".")),
    make("h3", {}, "Why: what each feature added"),
  ];
  if (found.why_not) {
    parts.push(make("p", {}, `Not shown: ${found.why_not}.`));
  } else {
    const order = [...found.contributions].sort((one, other) => Math.abs(other.added) - Math.abs(one.added));
    const sum = found.contributions.reduce((total, one) => total + one.added, 0);
    parts.push(make("p", { class: "note" }, `The model is linear: value × weight of each feature add up to the expected reward of the item, ${number(sum, 4)}.`));
    parts.push(inTable("Contributions", ["feature", "value", "weight", "added"],
      order.map((one) => [one.feature, number(one.value, 4), number(one.weight, 4), number(one.added, 4)])));
  }
  parts.push(make("h3", {}, "Every candidate"));
  parts.push(inTable("Candidates", ["item", "expected reward", "± std", "probability"], found.arms.map((arm) => [
    make("span", {}, arm.action === decision.action ? "→ " : "", clipped(arm.item), arm.offered ? "" : " (not on offer)"),
    number(arm.expected_reward), number(arm.standard_deviation), number(arm.probability, 5)])));
  if (found.arms_left_out) parts.push(make("p", { class: "note" }, `${found.arms_left_out} more items with less probability.`));
  return parts;
}

function inTable(label, head, rows) {
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, index) =>
      index ? make("td", {}, cell) : make("th", { scope: "row" }, cell)))))));
}

// ---- Timeline

const WORDS = { promoted: "Promoted", "rolled back": "Rolled back to", "not promoted": "Not promoted", hold: "Held", release: "Released", accept: "Window accepted" };

function showTimeline(events) {
  byId("events").replaceChildren(...events.map((event) => make("li", {},
    make("p", {}, `${timeOf(event.at)} `, make("strong", {}, WORDS[event.what]), ": ", make("span", { dir: "auto" }, event.reason.slice(0, 1000))),
    make("p", { class: "note" }, event.version))));
}

for (const button of byId("control").querySelectorAll("[data-action]")) {
  button.addEventListener("click", async () => {
    const form = byId("control");
    if (!form.reportValidity()) return;
    const answer = byId("control-answer");
    try {
      const done = await send(`api/${button.dataset.action}`, { reason: byId("reason").value });
      answer.textContent = done.serves ? `${done.serves} serves again.` : done.held ? "The loop is held." : "The loop goes on.";
      answer.className = "good";
      form.reset();
    } catch (error) {
      answer.textContent = error.message;
      answer.className = "bad";
    }
  });
}
byId("control").addEventListener("submit", (event) => event.preventDefault());

startViewer();
