// The page of live events: one WebSocket, one subscription, and a list of what it told.

const ROWS = 500; // events kept on the page; older ones are let go
const BUSY = 50; // events in one go that nobody could read one by one:
const BUSY_PAUSE = 250; // then the list moves four times a second, and the page stays quick
const LOOK_BACK = 200; // what happened just before one looks
const LOOK_BACK_FILTERED = 2000; // the same for a choice of types, which are rarer
const SHOWN_TYPES = 12;
const MAX_TYPES = 200;
const RETRY_SECONDS = [0.5, 1, 2, 4, 8];
const TOKEN_KEY = "omniactors-token";

const $ = (id) => document.getElementById(id);
const state = {
  socket: null, epoch: null, offset: null, tries: 0, serial: 0, timer: null,
  live: false, afresh: false, newest: 0, received: 0, missed: 0, unknownLoss: false, second: 0, rates: new Array(60).fill(0),
  events: [], waiting: [], seen: new Map(), paused: false, busy: false, types: [], find: "", scheduled: false,
  down: new Map(),
};

// -- connection ---------------------------------------------------------------------------------

function connect() {
  clearTimeout(state.timer);
  state.socket?.close();
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = (state.socket = new WebSocket(`${scheme}//${location.host}/ws`, "omniactors.v1.json"));
  say("connecting", "connecting");
  // Without a token too: where one is needed, the answer comes at once.
  socket.onopen = () => send({ t: "hello", token: sessionStorage.getItem(TOKEN_KEY), client: "page" });
  socket.onmessage = (message) => {
    if (socket === state.socket) take(JSON.parse(message.data));
  };
  socket.onclose = (event) => {
    if (socket !== state.socket) return;
    if (event.code >= 4400 && event.code < 4500) return refuse();
    const wait = RETRY_SECONDS[Math.min(state.tries++, RETRY_SECONDS.length - 1)];
    say("lost", `not connected, next try in ${wait} s`);
    state.timer = setTimeout(connect, wait * 1000);
  };
}

function send(frame) {
  if (state.socket.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify(frame));
}

function refuse() {
  sessionStorage.removeItem(TOKEN_KEY);
  say("lost", "a token is needed");
  $("token-form").hidden = false;
  $("token").focus();
}

function subscribe() {
  if (state.serial) send({ t: "unsub", s: state.serial });
  state.live = false;
  const frame = { t: "sub", s: ++state.serial, id: state.serial, queue: 8192 };
  if (state.types.length) frame.types = state.types;
  if (state.epoch !== null && state.offset !== null) frame.since = `${state.epoch}-${state.offset}`;
  send(frame);
}

function take(frame) {
  if ("s" in frame && frame.s !== state.serial) return; // of a subscription that we gave up
  switch (frame.t) {
    case "welcome":
      state.tries = 0;
      state.serial = 0;
      if (state.offset === null) {
        state.epoch = frame.epoch;
        state.newest = frame.head;
        state.offset = Math.max(0, frame.head - lookBack());
      }
      $("token-form").hidden = true;
      say("live", "live");
      subscribe();
      break;
    case "subbed":
      if (frame.epoch !== state.epoch) state.newest = frame.from;
      state.epoch = frame.epoch;
      state.offset = frame.from;
      if (state.afresh) clear();
      state.afresh = false;
      problem("");
      break;
    case "live":
      state.live = true;
      state.offset = Math.max(state.offset, frame.o);
      break;
    case "ev":
      frame.e.forEach(count);
      frame.e.forEach(add);
      state.offset = frame.e.at(-1).o;
      break;
    case "gap":
      if (frame.lost === null) state.unknownLoss = true;
      else state.missed += frame.lost;
      add({ gap: gapText(frame) });
      if (frame.o1 !== null) state.offset = frame.o1;
      break;
    case "ping":
      state.offset = Math.max(state.offset, frame.pos[state.serial] ?? 0);
      break;
    case "err":
      if (frame.id === state.serial) problem(frame.msg);
      break;
    case "end":
      add({ gap: `The stream has ended (${frame.why}).` });
      break;
  }
}

// What gave up stays on view until it runs again; whoever looks later learns of it at its next try, within a minute.
function outage({ event_type, data }) {
  if (event_type === "agent.down") state.down.set(data.agent, data.reason);
  else if (event_type !== "agent.started" || !state.down.delete(data.agent)) return;
  const agents = [...state.down].map(([agent, reason]) => `${agent} (${reason})`);
  $("down").textContent = `Given up: ${agents.join(", ")}`;
  $("down").hidden = agents.length === 0;
}

function count(event) {
  outage(event);
  if (state.live) state.second += 1;
  if (event.o <= state.newest) return; // counted already, or from before one looked
  state.newest = Math.max(state.newest, event.o);
  state.received += 1;
  state.seen.set(event.event_type, (state.seen.get(event.event_type) ?? 0) + 1);
  if (state.seen.size > MAX_TYPES) state.seen.delete(state.seen.keys().next().value);
}

function lookBack() {
  return state.types.length ? LOOK_BACK_FILTERED : LOOK_BACK;
}

function gapText(frame) {
  const many = frame.lost === 1 ? "1 event is" : `${frame.lost} events are`;
  switch (frame.why) {
    case "overflow": return `${many} missing here: they came faster than this page took them.`;
    case "evicted": return `Up to ${frame.lost} events are missing here: they are no longer kept.`;
    case "epoch": return "The system was started anew; what came in between is not known.";
    case "threads": return `${many} missing here: a thread published faster than events were taken in.`;
    default: return `${many} missing here (${frame.why}).`;
  }
}

// -- what is shown ------------------------------------------------------------------------------

function add(item) {
  state.waiting.push(item);
  if (state.waiting.length > 2 * ROWS) state.waiting.splice(0, ROWS);
  if (!state.scheduled && !state.paused) {
    state.scheduled = true;
    if (state.busy) setTimeout(show, BUSY_PAUSE);
    else requestAnimationFrame(show);
  }
}

function show() {
  state.scheduled = false;
  if (state.paused || !state.waiting.length) return;
  const items = state.waiting.splice(0);
  state.busy = items.length > BUSY;
  state.events.push(...items);
  if (state.events.length > ROWS) state.events.splice(0, state.events.length - ROWS);
  draw(items.slice(-ROWS).filter(wanted));
}

function draw(items) {
  const list = $("events");
  const rows = document.createDocumentFragment();
  for (const item of items.slice(-ROWS).reverse()) rows.append(row(item));
  list.prepend(rows);
  while (list.children.length > ROWS) list.lastElementChild.remove();
  const full = list.children.length >= ROWS;
  $("capped").hidden = !full;
  if (full) $("capped").textContent = `The newest ${ROWS} events are shown.`;
  $("empty").hidden = list.children.length > 0;
}

function redraw() {
  $("events").replaceChildren();
  draw(state.events.filter(wanted));
}

function clear() {
  state.events = [];
  state.waiting = [];
  redraw();
}

function wanted(item) {
  return !state.find || item.gap !== undefined || JSON.stringify(item).toLowerCase().includes(state.find);
}

function row(item) {
  const line = document.createElement("li");
  if (item.gap !== undefined) {
    line.className = "gap";
    line.textContent = item.gap;
    return line;
  }
  line.className = "event";
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.append(
    cell("time", clock(item.ts)), cell(`type ${tone(item.event_type)}`, item.event_type),
    cell("run", item.run_id), cell("data", summary(item.data)),
  );
  button.onclick = () => toggle(line, button, item);
  line.append(button);
  return line;
}

function toggle(line, button, item) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) return line.lastElementChild.remove();
  const detail = document.createElement("pre");
  const { o, ts, run_id, event_type, source, data } = item;
  const whole = { offset: o, time: new Date(ts * 1000).toISOString(), event_type, run_id, source, data };
  detail.textContent = JSON.stringify(whole, null, 2);
  line.append(detail);
}

function cell(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  if (!name.startsWith("time")) span.title = text;
  return span;
}

function clock(seconds) {
  const date = new Date(seconds * 1000);
  return date.toLocaleTimeString([], { hour12: false }) + "." + String(date.getMilliseconds()).padStart(3, "0");
}

function summary(data) {
  const parts = Object.entries(data).map(([key, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return `${key}=${text.length > 60 ? text.slice(0, 60) + "…" : text}`;
  });
  return parts.join("  ").slice(0, 300);
}

function tone(type) {
  const last = type.slice(type.lastIndexOf(".") + 1);
  if (["failed", "crashed", "gave_up", "down", "dead_lettered", "disconnected"].includes(last)) return "bad";
  if (["retried", "restarted", "duplicate", "late_completion", "full", "paused", "gap"].includes(last)) return "warn";
  if (["completed", "recovered", "delivered", "resumed"].includes(last)) return "good";
  return "";
}

function say(name, text) {
  $("state").dataset.state = name;
  $("state").textContent = text;
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// -- once a second --------------------------------------------------------------------------------

function tick() {
  state.rates.shift();
  state.rates.push(state.second);
  state.second = 0;
  if (!document.hidden) tell();
}

function tell() {
  $("rate").textContent = state.rates.at(-1).toLocaleString();
  $("received").textContent = state.received.toLocaleString();
  $("missed").textContent = state.unknownLoss && !state.missed ? "?" : state.missed.toLocaleString() + (state.unknownLoss ? "+" : "");
  $("missed-box").classList.toggle("some", state.missed > 0 || state.unknownLoss);
  $("pause").textContent = state.paused && state.waiting.length ? `Resume (${newer()})` : state.paused ? "Resume" : "Pause";
  chart();
  types();
}

function newer() {
  return state.waiting.length >= ROWS ? `${ROWS}+` : state.waiting.length;
}

function chart() {
  const canvas = $("chart");
  const pen = canvas.getContext("2d");
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  pen.scale(ratio, ratio);
  pen.fillStyle = getComputedStyle(canvas).color;
  const most = Math.max(1, ...state.rates), step = width / state.rates.length;
  state.rates.forEach((rate, index) => {
    const tall = rate ? Math.max(2, (rate / most) * (height - 1)) : 1;
    pen.globalAlpha = rate ? 0.85 : 0.25;
    pen.fillRect(index * step, height - tall, Math.max(1, step - 1), tall);
  });
}

function types() {
  const top = [...state.seen].sort((a, b) => b[1] - a[1]).slice(0, SHOWN_TYPES);
  const box = $("seen");
  top.forEach(([type, count], index) => {
    let chip = box.children[index];
    if (!chip) {
      chip = document.createElement("button");
      chip.type = "button";
      chip.append(document.createElement("span"), document.createElement("b"));
      chip.onclick = () => filter(chip.dataset.type);
      box.append(chip);
    }
    if (chip.dataset.type !== type) {
      chip.dataset.type = type;
      chip.title = `Show only ${type}`;
      chip.firstElementChild.textContent = type;
    }
    chip.lastElementChild.textContent = count.toLocaleString();
    chip.setAttribute("aria-pressed", String(state.types.length === 1 && state.types[0] === type));
  });
  while (box.children.length > top.length) box.lastElementChild.remove();
}

// -- controls -------------------------------------------------------------------------------------

function filter(text) {
  if (state.types.length === 1 && state.types[0] === text) text = "";
  $("types").value = text;
  applyTypes();
}

function applyTypes() {
  const wantedTypes = $("types").value.split(/[\s,]+/).filter(Boolean);
  if (wantedTypes.join() === state.types.join()) return;
  state.types = wantedTypes;
  history.replaceState(null, "", wantedTypes.length ? `#${wantedTypes.join(",")}` : location.pathname);
  state.afresh = true;
  if (state.offset !== null) state.offset = Math.max(0, state.offset - lookBack());
  if (state.socket?.readyState === WebSocket.OPEN) subscribe();
  types();
}

let typing;
$("types").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(applyTypes, 400);
});
$("find").addEventListener("input", () => {
  state.find = $("find").value.trim().toLowerCase();
  redraw();
});
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  applyTypes();
});
$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  $("pause").setAttribute("aria-pressed", String(state.paused));
  show();
  tell();
});
$("clear").addEventListener("click", clear);
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, $("token").value);
  $("token").value = "";
  state.tries = 0;
  connect();
});
document.addEventListener("visibilitychange", () => document.hidden || tell());

$("types").value = decodeURIComponent(location.hash.slice(1));
state.types = $("types").value.split(/[\s,]+/).filter(Boolean);
setInterval(tick, 1000);
tell();
connect();
