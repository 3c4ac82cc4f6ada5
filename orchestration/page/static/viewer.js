// Be a viewer: an observation, a recommendation, its reward, and what became of that.

import { number } from "./charts.js";
import { clipped, make, send } from "./page.js";

const byId = (id) => document.getElementById(id);
const REWARDS = [0, 1, 2, 3, 4, 5];
const RATED_ITEMS = 12;

let rewardWindow = null;
let deadline = null;

export function startViewer() {
  byId("load-viewers").addEventListener("click", () => answering(loadViewers));
  byId("make-viewer").addEventListener("toggle", () => byId("make-viewer").open && answering(loadViewers));
  byId("viewer-id").addEventListener("change", () => answering(pickViewer));
  byId("rating-fields").addEventListener("change", () => answering(makeViewer));
  byId("viewer-form").addEventListener("submit", (event) => {
    event.preventDefault();
    answering(recommend);
  });
  setInterval(countDown, 100);
}

/** Does something, and says what went wrong if it did. */
async function answering(act) {
  const answer = byId("viewer-answer");
  try {
    answer.className = "";
    answer.textContent = (await act()) ?? "";
  } catch (error) {
    answer.className = "bad";
    answer.textContent = error.message;
  }
}

async function loadViewers() {
  if (byId("viewer-ids").childElementCount) return "";
  byId("viewer-answer").textContent = "Loading the viewers …";
  const { user_ids: ids, items } = await send("api/viewers");
  byId("viewer-ids").replaceChildren(...ids.slice(0, 200).map((id) => make("option", { value: id })));
  byId("rating-fields").replaceChildren(...items.slice(0, RATED_ITEMS).map((item, action) =>
    make("label", {}, clipped(item), make("input", { type: "number", min: "0.5", max: "5", step: "0.5", "data-action": action }))));
  byId("viewer-id").value ||= ids[0];
  const picked = await pickViewer();
  return `${ids.length} viewers, such as ${ids.slice(0, 5).join(", ")}. ${picked}`;
}

async function pickViewer() {
  const id = byId("viewer-id").value.trim();
  if (!id) return "";
  const { observation } = await send(`api/viewers/${encodeURIComponent(id)}`);
  byId("observation").value = observation.join(", ");
  return `Viewer ${id} is picked.`;
}

async function makeViewer() {
  const fields = [...byId("rating-fields").querySelectorAll("input")].filter((field) => field.value !== "");
  const ratings = Object.fromEntries(fields.map((field) => [field.dataset.action, Number(field.value)]));
  const { observation } = await send("api/viewers", { ratings });
  byId("observation").value = observation.map((value) => Number(value.toFixed(6))).join(", ");
  byId("viewer-id").value = "";
  return `A viewer with ${fields.length} ratings.`;
}

async function recommend() {
  const text = byId("observation").value.trim();
  if (!text) await loadViewers();
  const observation = byId("observation").value.split(/[\s,]+/).filter(Boolean).map(Number);
  if (observation.some((value) => !Number.isFinite(value))) throw new Error("observation: numbers, separated by commas, expected");
  const user = byId("viewer-id").value.trim();
  const found = await send("api/recommend", { observation, user_id: user || null });
  byId("recommendation").hidden = false;
  byId("recommended-item").replaceChildren(clipped(found.item));
  byId("recommended-how").textContent = `with probability ${number(found.propensity, 4)}, by ${found.policy_version}`;
  byId("curl").textContent = `${found.curl}\n\n${found.curl_reward}`;
  byId("reward-buttons").replaceChildren(...REWARDS.map((reward) => {
    const button = make("button", { type: "button" }, `Reward ${reward}`);
    button.addEventListener("click", () => answering(() => sendReward(found, reward)));
    return button;
  }));
  deadline = rewardWindow === null ? null : performance.now() + 1000 * rewardWindow;
  return "";
}

async function sendReward(found, reward) {
  await send("api/reward", { decision_id: found.decision_id, reward });
  byId("reward-buttons").replaceChildren();
  deadline = null;
  byId("time-left").textContent = "";
  return `Reward ${reward} for ${found.item.slice(0, 100)} is sent. What becomes of it is below.`;
}

function countDown() {
  if (deadline === null) return;
  const left = (deadline - performance.now()) / 1000;
  byId("time-left").textContent = left > 0 ? `${left.toFixed(1)} s left: a reward counts within the reward window.`
    : "The reward window is over. Ask again, and reward sooner, or run the loop with a longer --reward-window-seconds.";
  if (left <= 0) deadline = null;
}

export function showRewarded(state) {
  rewardWindow = state.reward_window_seconds;
  byId("reward-window").textContent = rewardWindow === null ? "" : `A reward counts within ${rewardWindow} s of the recommendation.`;
  byId("rewarded").replaceChildren(...state.rewarded.map((one) => make("li", {},
    make("p", {}, make("strong", {}, clipped(one.item)), ` Reward ${number(one.reward, 2)}: ${one.words}.`),
    make("p", { class: "note" }, one.version ?? one.decision_id))));
}
