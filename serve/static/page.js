// The page at /. Text from the service or from the user is only ever set as textContent.
"use strict";

const TASKS = ["pointwise", "pairwise", "listwise"];
const HUES = { pointwise: "point", pairwise: "pair", listwise: "list" };
const NAMES = { pointwise: "Pointwise", pairwise: "Pairwise", listwise: "Listwise", backbone: "Retriever" };
const ABSENT = {  // why a task did not take part
  late: "no answer in time",
  queue: "too many requests wait for it",
  deadline: "not enough time to ask it",
  no_replica: "it is not running just now",
  too_long: "with titles this long it would have to read more than the model can",
};
const EXAMPLE = {
  liked: ["Blade Runner (1982)", "The Terminator (1984)", "2001: A Space Odyssey (1968)", "Alien (1979)"],
  disliked: ["Grease (1978)"],
  offered: [
    "Sabrina (1954)", "Star Wars (1977)", "The Sound of Music (1965)", "Aliens (1986)",
    "Sleepless in Seattle (1993)", "Brazil (1985)", "Mary Poppins (1964)", "Twelve Monkeys (1995)",
  ],
};

const $ = (id) => document.getElementById(id);

const state = {
  users: [],
  token: sessionStorage.getItem("recranker-token"),
  request: null,    // what was asked: a body for /v1/rank
  history: [],      // [{title, liked}], oldest first
  candidates: [],   // [{id, title}], in the retriever's order
  answer: null,     // what came back
  learned: {},      // weight of each signal as the service uses it
  weights: {},      // as the sliders stand
  open: new Set(),  // ids of candidates whose reasons are shown
  entry: null,      // place in the history that is looked at
  flight: null,     // AbortController of the request under way
};

// ---------------------------------------------------------------- talking to the service

class Problem extends Error {}

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let reply;
  try {
    reply = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached. Is it still running?");
  }
  let answer = null;
  try {
    answer = await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (reply.ok && answer) return answer;
  if (reply.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
    throw new Problem(state.token ? "The service does not accept this token." : "Enter the token to go on.");
  }
  throw new Problem(inWords(reply, answer));
}

function inWords(reply, answer) {
  const said = answer && answer.message ? `${capital(answer.message)}.` : "";
  if (reply.status === 503) return `The service is busy or not ready. ${said}`;
  if (reply.status === 504) return `It took too long. ${said}`;
  if (reply.status >= 500) return `The service failed. ${said}`;
  return said ? `The service refused this. ${said}` : `The service answered ${reply.status}.`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");
}

// ---------------------------------------------------------------- asking

async function start() {
  try {
    hideProblem();
    state.users = (await call("v1/demo-users")).users;
  } catch (error) {
    showProblem(error, start);
    return;
  }
  $("token-form").hidden = true;
  $("user").replaceChildren(...state.users.map((user, place) => {
    return make("option", { value: String(place) }, `User ${user.user_id}`);
  }));
  if (state.users.length) {
    chooseTab("demo");
    rankDemoUser();
  } else {
    $("tab-demo").disabled = true;
    chooseTab("own");
    remark("No users are published here, so there is nobody to pick. Paste titles, or run jobs.publish and deploy again.");
    rankOwn();
  }
}

function rankDemoUser() {
  const user = state.users[Number($("user").value)];
  state.history = user.history;
  state.candidates = user.candidates.map(({ id, title }) => ({ id, title }));
  rank({ user_id: user.user_id });
}

function rankOwn() {
  const liked = lines("liked").map((title) => ({ title, liked: true }));
  const disliked = lines("disliked").map((title) => ({ title, liked: false }));
  const offered = lines("offered");
  state.history = [...disliked, ...liked];
  state.candidates = offered.map((title, place) => ({ id: String(place), title }));
  if (offered.length < 2) {
    forget();
    showProblem(new Problem("Give at least two candidates, one title a line."), null);
    return;
  }
  rank({ history: state.history, candidates: state.candidates });
}

function lines(id) {
  return $(id).value.split("\n").map((line) => line.trim()).filter((line) => line);
}

async function rank(request) {
  forget();
  state.request = request;
  const began = performance.now();
  const answer = await ask(request, "Asking the model…", () => rank(request));
  if (!answer) return;
  state.answer = answer;
  state.learned = Object.fromEntries(["backbone", ...TASKS].map((name) => [name, answer.model.weights[name] || 0]));
  state.weights = { ...state.learned };
  adopt(answer);
  showWeights();
  showRemarks();
  showOrder(false);
  say(`Answered in ${seconds(performance.now() - began)}.`);
}

async function explain() {
  const total = Object.values(state.weights).reduce((sum, weight) => sum + weight, 0);
  if (!state.answer || !total) return;
  const request = { ...state.request, explain: true, weights: state.weights };
  const began = performance.now();
  $("explain").disabled = true;
  const answer = await ask(request, "Asking again without each of the latest entries…", explain);
  $("explain").disabled = !state.answer;
  if (!answer) return;
  state.answer = answer;
  adopt(answer);
  showWeights();
  showRemarks();
  state.entry = answer.influences.length ? answer.influences[0].history : null;
  $("history-box").open = true;
  showHistory();
  showOrder(true);
  const none = answer.influences.length ? "" : "No entry could be left out. ";
  say(`${none}Answered in ${seconds(performance.now() - began)}.`);
}

async function ask(request, text, again) {
  if (state.flight) state.flight.abort();
  const flight = state.flight = new AbortController();
  hideProblem();
  say(text, true);
  try {
    return await call("v1/rank", request, flight.signal);
  } catch (error) {
    if (error.name === "AbortError") return null;
    say("");
    showProblem(error, again);
    return null;
  } finally {
    if (state.flight === flight) state.flight = null;
  }
}

function forget() {
  Object.assign(state, { answer: null, learned: {}, weights: {}, entry: null });
  state.open.clear();
  hideProblem();
  $("remarks").replaceChildren();
  say("");
  showHistory();
  showBefore();
  showWaiting();
  showWeights();
}

// Candidates that the store chose itself are named by the answer alone.
function adopt(answer) {
  const titles = new Map(state.candidates.map((one) => [one.id, one.title]));
  const order = [...answer.ranking].sort((a, b) => a.backbone_rank - b.backbone_rank);
  state.candidates = order.map((one) => ({ id: one.id, title: titles.get(one.id) || `Item ${one.id}` }));
  showBefore();
}

// ---------------------------------------------------------------- the order, as the sliders stand

function isLearned() {
  return TASKS.every((task) => state.weights[task] === state.learned[task]);
}

function fused() {
  const present = Object.keys(state.answer.ranking[0].signals);
  const total = present.reduce((sum, name) => sum + (state.weights[name] || 0), 0);
  const scored = state.answer.ranking.map((item) => ({
    item,
    score: total ? present.reduce((sum, name) => sum + ((state.weights[name] || 0) / total) * item.signals[name], 0) : 0,
  }));
  return scored.sort((a, b) => b.score - a.score || a.item.backbone_rank - b.item.backbone_rank);
}

function showOrder(animated) {
  if (!state.answer || !state.answer.ranking.length) return;
  const list = $("after");
  const before = new Map([...list.children].map((row) => [row.dataset.id, row.getBoundingClientRect().top]));
  const focused = document.activeElement && document.activeElement.closest("#after li");
  const rows = fused().map(({ item, score }, index) => candidateRow(item, score, index + 1));
  list.className = "";
  $("score-name").textContent = state.entry !== null ? "it adds" : showsLikely() ? "likely" : "score";
  list.replaceChildren(...rows);
  if (focused) {
    const again = rows.find((row) => row.dataset.id === focused.dataset.id);
    if (again) again.querySelector("button").focus({ preventScroll: true });
  }
  if (animated) rows.forEach((row) => glide(row, before.get(row.dataset.id)));
  drawLines();
  const enough = Object.values(state.weights).some((weight) => weight > 0);
  $("explain").disabled = !(state.history.length && enough && state.answer.order === "fused");
}

function glide(row, from) {
  if (from === undefined || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const offset = from - row.getBoundingClientRect().top;
  if (offset) row.animate([{ transform: `translateY(${offset}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
}

function candidateRow(item, score, place) {
  const row = make("li", { "data-id": item.id });
  const button = make("button", { type: "button", class: "row", "aria-expanded": String(state.open.has(item.id)) });
  const lift = state.entry === null ? null : liftOf(item.id, state.entry);
  button.append(
    make("span", { class: "place" }, String(place)),
    make("span", { class: "title clip" }, titleOf(item.id)),
    movedChip(item.backbone_rank - place),
    bars(item),
    lift === null ? scoreOf(item, score) : signedSpan(lift),
  );
  button.addEventListener("click", () => {
    if (!state.open.delete(item.id)) state.open.add(item.id);
    showOrder(false);
  });
  row.append(button);
  if (state.open.has(item.id)) row.append(why(item, score, place));
  for (const [kind, lit] of [["mouseenter", true], ["mouseleave", false], ["focusin", true], ["focusout", false]]) {
    row.addEventListener(kind, () => light(item.id, lit));
  }
  return row;
}

function movedChip(steps) {
  const kind = steps > 0 ? "up" : steps < 0 ? "down" : "same";
  const text = steps > 0 ? `▲ ${steps}` : steps < 0 ? `▼ ${-steps}` : "–";
  const chip = make("span", { class: `moved ${kind}` });
  chip.append(make("span", { "aria-hidden": "true" }, text), make("span", { class: "hidden" }, inPlaces(steps)));
  return chip;
}

function inPlaces(steps) {
  if (!steps) return "same place";
  return `${steps > 0 ? "up" : "down"} ${Math.abs(steps)} ${Math.abs(steps) === 1 ? "place" : "places"}`;
}

function bars(item) {
  const furthest = Math.max(1e-9, ...state.answer.ranking.flatMap((one) => TASKS.map((task) => Math.abs(one.signals[task] || 0))));
  const box = make("span", { class: "bars" });
  for (const task of TASKS) {
    const value = item.signals[task];
    const bar = make("span", { class: `bar ${HUES[task]}` });
    if (!(state.weights[task] > 0)) bar.classList.add("off");
    if (value !== undefined) {
      const fill = make("i", {});
      const width = (Math.abs(value) / furthest) * 50;
      fill.style.width = `${width}%`;
      fill.style.left = `${value >= 0 ? 50 : 50 - width}%`;
      bar.append(fill, make("span", { class: "hidden" }, `${NAMES[task]} ${signed(value)}`));
      bar.title = `${NAMES[task]} ${signed(value)}`;
    }
    box.append(bar);
  }
  return box;
}

// Probabilities are calibrated for the learned weights alone.
function showsLikely() {
  const likely = state.answer.ranking[0].probability;
  return isLearned() && likely !== null && likely !== undefined;
}

function scoreOf(item, score) {
  if (showsLikely()) {
    const likely = `${Math.round(item.probability * 100)} %`;
    return make("span", { class: "score", title: "How likely this is the one liked next" }, likely);
  }
  return make("span", { class: "score", title: "Fused score" }, signed(score));
}

function signedSpan(value) {
  const kind = value > 0.005 ? "up" : value < -0.005 ? "down" : "";
  return make("span", { class: `score ${kind}`, title: "What the chosen history entry adds to the score" }, signed(value));
}

function why(item, score, place) {
  const box = make("div", { class: "why" });
  const from = item.backbone_rank;
  const moved = from === place ? `Stays at place ${place}.` : `From place ${from} to ${place}: ${inPlaces(from - place)}.`;
  const hint = item.hint === null || item.hint === undefined ? "The prompts quote no hint." : `The prompts quoted it at place ${item.hint}.`;
  box.append(make("p", {}, `${moved} ${hint}`), reasons(item, score));
  const lifts = (state.answer.influences || []).map((one) => [one.history, one.lifts[item.id]]);
  if (lifts.length) {
    const list = make("ul", {});
    for (const [entry, lift] of lifts.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]))) {
      const line = make("li", {});
      line.append(make("b", {}, signed(lift)), make("span", {}, entryText(state.history[entry])));
      list.append(line);
    }
    box.append(make("p", { class: "quiet" }, "What each of the latest entries adds to its score, beside the other candidates:"), list);
  }
  return box;
}

function entryText(entry) {
  return entry ? `${entry.title}${entry.liked === false ? " (disliked)" : ""}` : "an entry of the history";
}

function reasons(item, score) {
  const table = make("table", {});
  const head = make("tr", {});
  ["Signal", "Score", "Weight", "Adds"].forEach((text) => head.append(make("th", { scope: "col" }, text)));
  const present = Object.keys(item.signals);
  const total = present.reduce((sum, name) => sum + (state.weights[name] || 0), 0);
  const body = make("tbody", {});
  for (const name of [...TASKS, "backbone"].filter((one) => present.includes(one))) {
    const share = total ? (state.weights[name] || 0) / total : 0;
    const row = make("tr", {});
    row.append(
      make("td", { class: HUES[name] || "" }, NAMES[name]),
      make("td", {}, signed(item.signals[name])),
      make("td", {}, share.toFixed(2)),
      make("td", {}, signed(share * item.signals[name])),
    );
    body.append(row);
  }
  const foot = make("tr", {});
  foot.append(make("td", { colspan: "3" }, "Fused"), make("td", {}, signed(score)));
  table.append(wrap("thead", head), body, wrap("tfoot", foot));
  return table;
}

// ---------------------------------------------------------------- the rest of the page

function showHistory() {
  const known = new Set(((state.answer && state.answer.influences) || []).map((one) => one.history));
  const entries = state.history.map((entry, place) => historyEntry(entry, place, known.has(place))).reverse();
  $("history").replaceChildren(...entries);
  const liked = state.history.filter((entry) => entry.liked !== false).length;
  $("history-count").textContent = state.history.length ? `${liked} liked, ${state.history.length - liked} disliked` : "";
  $("history-hint").hidden = !known.size;
  $("history-empty").hidden = state.history.length > 0;
}

function historyEntry(entry, place, isKnown) {
  const kind = `entry ${entry.liked === false ? "no" : "yes"}`;
  const box = isKnown
    ? make("button", { type: "button", class: kind, "aria-pressed": String(state.entry === place) })
    : make("div", { class: kind });
  const mark = make("span", { class: "mark" });
  mark.append(
    make("span", { "aria-hidden": "true" }, entry.liked === false ? "✕" : "♥"),
    make("span", { class: "hidden" }, entry.liked === false ? "disliked" : "liked"),
  );
  box.append(mark, make("span", { class: "title" }, entry.title));
  if (isKnown) {
    box.append(reach(place));
    box.addEventListener("click", () => {
      state.entry = state.entry === place ? null : place;
      showHistory();
      showOrder(false);
      const again = [...document.querySelectorAll("button.entry")].find((one) => one.dataset.place === String(place));
      if (again) again.focus();
    });
    box.dataset.place = String(place);
  }
  return wrap("li", box);
}

// How much an entry moves at all, beside the one that moves most.
function reach(place) {
  const most = (one) => Math.max(...Object.values(one.lifts).map(Math.abs));
  const all = state.answer.influences;
  const fill = make("i", {});
  fill.style.width = `${(100 * most(all.find((one) => one.history === place))) / Math.max(1e-9, ...all.map(most))}%`;
  const box = make("span", { class: "reach", title: "How much it moves" });
  box.append(fill);
  return box;
}

function liftOf(id, entry) {
  const found = (state.answer.influences || []).find((one) => one.history === entry);
  return found ? found.lifts[id] : null;
}

function showBefore() {
  $("before").replaceChildren(...state.candidates.map((one, index) => {
    const row = make("li", { "data-id": one.id });
    row.append(make("span", { class: "place" }, String(index + 1)), make("span", { class: "clip" }, one.title));
    row.addEventListener("mouseenter", () => light(one.id, true));
    row.addEventListener("mouseleave", () => light(one.id, false));
    return row;
  }));
}

function showWaiting() {
  $("after").className = "waiting";
  $("after").replaceChildren(...state.candidates.map((one, index) => {
    const row = make("div", { class: "row" });
    row.append(make("span", { class: "place" }, String(index + 1)), make("span", { class: "title clip" }, one.title));
    return wrap("li", row);
  }));
  $("lines").replaceChildren();
  $("explain").disabled = true;
}

function showWeights() {
  for (const task of TASKS) {
    const slider = $(`weight-${task}`);
    const answered = Boolean(state.answer && state.answer.ranking.length && task in state.answer.ranking[0].signals);
    slider.disabled = !answered;
    slider.value = String(state.weights[task] || 0);
    slider.style.setProperty("--filled", `${100 * (state.weights[task] || 0)}%`);
    $(`value-${task}`).textContent = answered ? (state.weights[task] || 0).toFixed(2) : "–";
  }
  $("reset").disabled = !state.answer || isLearned();
  const rest = state.learned.backbone;
  $("backbone-weight").textContent = state.answer ? `Retriever ${rest.toFixed(2)}` : "";
}

function showRemarks() {
  const { degraded, order, plan, user } = state.answer;
  $("remarks").replaceChildren();
  if (user === "unknown") remark("This user is not known here: the order rests on the candidates alone.");
  if (user === "unavailable") remark("This user could not be looked up just now: the order rests on the candidates alone.");
  const whyNot = (task) => ABSENT[plan && plan.left_out[task]] || ABSENT.late;
  for (const why of new Set(degraded.map(whyNot))) {
    remark(`${degraded.filter((task) => whyNot(task) === why).map((task) => NAMES[task]).join(" and ")}: ${why}.`);
  }
  if (order === "backbone") remark("Nothing that has a weight answered: this is the retriever's order, unchanged.");
  if (plan && plan.pairs_asked) remark(`There was time for ${plan.pairs_asked} of ${plan.pairs_wanted} pairs.`);
  const { run, model, preset, adapter } = state.answer.model;
  $("model").textContent = `Run ${run} · ${model} · adapter ${adapter} · preset ${preset}`;
}

function remark(text) {
  $("remarks").append(make("p", { class: "notice" }, text));
}

function drawLines() {
  const box = $("lines").getBoundingClientRect();
  if (!box.width) return;
  const middles = (id) => new Map([...$(id).children].map((row) => {
    const place = (row.querySelector(".row") || row).getBoundingClientRect();
    return [row.dataset.id, (place.top + place.bottom) / 2 - box.top];
  }));
  const [left, right] = [middles("before"), middles("after")];
  const places = new Map([...$("after").children].map((row, index) => [row.dataset.id, index]));
  $("lines").replaceChildren(...state.candidates.map((one, index) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const [from, to, bend] = [left.get(one.id), right.get(one.id), box.width / 2];
    path.setAttribute("d", `M4 ${from} C${bend} ${from} ${bend} ${to} ${box.width - 4} ${to}`);
    path.dataset.id = one.id;
    const steps = index - places.get(one.id);
    if (steps) path.classList.add(steps > 0 ? "up" : "down");
    return path;
  }));
}

function light(id, lit) {
  for (const one of document.querySelectorAll("#before li, #after li, #lines path")) {
    if (one.dataset.id === id) one.classList.toggle("lit", lit);
  }
}

function say(text, working = false) {
  $("status").textContent = text;
  $("status").classList.toggle("working", working);
}

function showProblem(error, again) {
  if (!(error instanceof Problem)) console.error(error);
  $("problem-text").textContent = error instanceof Problem ? error.message : "The page failed; its console says why.";
  $("problem").hidden = false;
  $("retry").hidden = !again;
  $("retry").onclick = again;
}

function hideProblem() {
  $("problem").hidden = true;
}

function chooseTab(name) {
  $("demo").hidden = name !== "demo";
  $("own").hidden = name !== "own";
  $("tab-demo").setAttribute("aria-pressed", String(name === "demo"));
  $("tab-own").setAttribute("aria-pressed", String(name === "own"));
}

// ---------------------------------------------------------------- small things

function make(tag, attributes, text) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== "") element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function wrap(tag, child) {
  const element = document.createElement(tag);
  element.append(child);
  return element;
}

function titleOf(id) {
  const found = state.candidates.find((one) => one.id === id);
  return found ? found.title : `Item ${id}`;
}

function signed(value) {
  const text = Math.abs(value).toFixed(2);
  return text === "0.00" ? text : value > 0 ? `+${text}` : `−${text}`;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function step(by) {
  const select = $("user");
  if (!state.users.length) return;
  select.value = String((Number(select.value) + by + state.users.length) % state.users.length);
  rankDemoUser();
}

// ---------------------------------------------------------------- wiring

for (const task of TASKS) {
  $(`weight-${task}`).addEventListener("input", (event) => {
    state.weights = { ...state.weights, [task]: Number(event.target.value) };
    if (state.answer.influences) {
      state.answer = { ...state.answer, influences: null };  // they were for other weights
      state.entry = null;
      showHistory();
    }
    showWeights();
    showOrder(true);
  });
  $(`weight-${task}`).addEventListener("change", () => say(`First now: ${titleOf(fused()[0].item.id)}.`));
}
$("reset").addEventListener("click", () => {
  state.weights = { ...state.learned };
  showWeights();
  showOrder(true);
});
$("user").addEventListener("change", rankDemoUser);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("explain").addEventListener("click", explain);
$("tab-demo").addEventListener("click", () => {
  chooseTab("demo");
  rankDemoUser();
});
$("tab-own").addEventListener("click", () => {
  chooseTab("own");
  rankOwn();
});
$("demo").addEventListener("submit", (event) => event.preventDefault());
$("own").addEventListener("submit", (event) => {
  event.preventDefault();
  rankOwn();
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  sessionStorage.setItem("recranker-token", state.token);
  start();
});
new ResizeObserver(() => state.answer && drawLines()).observe($("orders"));
for (const id of ["liked", "disliked", "offered"]) $(id).value = EXAMPLE[id].join("\n");
if (matchMedia("(max-width: 52rem)").matches) {
  $("history-box").open = false;
  $("before-box").open = false;
}
start();
