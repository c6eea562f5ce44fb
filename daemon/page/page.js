/* The page: joins connections, microphone, transcripts and document.
 *
 * Owns what a user may do and the page's few memories (name, token). The parts know nothing of each other.
 */

import { Capture, FRAME, explain, impossible } from "./capture.js";
import { Transcripts } from "./captions.js";
import { FORMATS } from "./formats.js";
import { Link, address, listing, replay } from "./link.js";
import { Stream } from "./stream.js";
import { Meter, notice, say, showSources, showTranscript, toEnd } from "./view.js";

const HEARTBEAT = 10000; // ms
const SILENT = 4; // seconds without a sound from a microphone that is on: it is muted

const get = (id) => document.getElementById(id);

const transcripts = new Transcripts();
const meter = new Meter();
let token = remembered("token") ?? "";
let mine = remembered("name") ?? `browser-${Math.random().toString(16).slice(2, 6)}`;
let selected = mine;

// --- memories --------------------------------------------------------------------------------------------------------

function remembered(key) {
  try {
    return sessionStorage.getItem(`whisperd.${key}`) ?? localStorage.getItem(`whisperd.${key}`);
  } catch {
    return null; // storage is forbidden here
  }
}

function remember(key, value, place = "localStorage") {
  try {
    window[place].setItem(`whisperd.${key}`, value);
  } catch {
    // then it is asked again
  }
}

// --- what is heard of the service ------------------------------------------------------------------------------------

let asleep = false; // the models were put away, and are loaded again when somebody speaks

async function greet() {
  const answer = await listing(token);
  asleep = answer.asleep === true;
  transcripts.begin(answer.run);
  return answer;
}

const connected = () => say("connection", asleep ? "Connected, asleep: the first words take a moment" : "Connected");

/** `arrived`: null for what was said some time ago. */
function received(event, arrived = Date.now()) {
  if (event.type === "ready") {
    say("models", `${event.student}${event.teacher ? ` + ${event.teacher}` : ""}, ${event.device}`);
    describe();
  } else if (event.type === "error" || event.type === "notice") notice(event.message);
  if (!transcripts.receive(event, arrived)) return;
  if (event.source === selected && arrived !== null) measured(event);
  draw();
}

function measured(event) {
  if (event.type === "partial") say("lag", `${event.lag_ms} ms`);
  if (event.type !== "final") return;
  say("latency", `${event.latency_ms} ms`);
  get("announcer").textContent = event.text;
}

let catching = false;

/** What came while there was no connection, and before the first. What cannot be had now is asked for with the next
 *  heartbeat. */
async function catchUp(missing) {
  if (catching) return;
  catching = true;
  for (const each of missing) {
    if (!(await replay(each, token, (event) => received(event, null)))) break;
    transcripts.caughtUp(each.source);
  }
  catching = false;
}

function showStates(listed) {
  for (const { source, state } of listed) transcripts.of(source).state = state;
  draw();
}

const events = new Link(() => address("v1/events", {}, token), greet, {
  opened: ({ sources }) => {
    stream?.hurry();
    catchUp(transcripts.missing(sources));
    showStates(sources);
  },
  message: received,
  state: showConnection,
});

function showConnection(state) {
  get("connection").dataset.kind = state.kind;
  get("retry").hidden = state.kind !== "waiting" && state.kind !== "refused";
  switch (state.kind) {
    case "connecting":
      return say("connection", "Connecting");
    case "open":
      return connected();
    case "waiting":
      return say("connection", `${sentence(state.reason)}. Trying again in ${Math.ceil(state.seconds)} s`);
    case "refused":
      say("connection", state.code === "unauthorised" ? "A token is required" : "Refused");
      return refused(state);
  }
}

function refused({ code, message }) {
  if (code === "unauthorised") askForToken();
  else notice(`${sentence(message)}.`);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Browsers do not say when the other end is gone for good; this asks. */
async function beat() {
  try {
    const { sources } = await greet();
    connected();
    catchUp(transcripts.missing(sources));
    showStates(sources);
  } catch (error) {
    if (error.type !== "error") events.lost("the service does not answer");
  }
}

setInterval(() => {
  if (transcripts.tidy(Date.now())) draw();
  if (get("connection").dataset.kind === "open" && !document.hidden) beat();
}, HEARTBEAT);

// --- the token -------------------------------------------------------------------------------------------------------

function askForToken() {
  if (get("ask").open) return;
  get("wrong").hidden = !token;
  get("ask").showModal();
}

get("ask").addEventListener("submit", () => {
  token = get("token").value.trim();
  remember("token", token, get("remember").checked ? "localStorage" : "sessionStorage");
  get("token").value = "";
  events.open();
  stream?.open();
});

// --- speaking --------------------------------------------------------------------------------------------------------

let capture = null; // while the microphone is on
let stream = null; // while something of ours is still to be heard, or to come back
let streamState = { kind: "closed" };
let silence = 0; // seconds without any sound
let still = false; // the system lets no sound through
let lost = 0;

async function start() {
  notice("");
  const trouble = impossible();
  if (trouble) return notice(trouble);
  stream?.abandon();
  const opening = new Capture();
  capture = opening;
  silence = lost = 0;
  still = false;
  select(mine);
  describe();
  try {
    const rate = await opening.open(() => stop("The microphone was disconnected."));
    if (capture !== opening) return opening.stop(); // stopped while the browser was still asking
    stream = join(rate);
    stream.open();
    opening.run(hear, interrupted);
  } catch (error) {
    opening.stop();
    if (capture === opening) stop(explain(error));
  }
  describe();
}

function stop(why = "") {
  capture?.stop();
  capture = null;
  meter.clear();
  notice(why);
  stream?.stop();
  describe();
}

function hear(frame, level) {
  meter.add(level);
  const before = silence;
  silence = level > 0 ? 0 : silence + FRAME;
  if (silence >= SILENT !== before >= SILENT) describe();
  stream?.push(frame);
}

/** A call, a locked screen, another program. What was said before is not to wait for what comes after. */
function interrupted(now) {
  still = now;
  if (still) {
    meter.clear();
    stream?.pause();
  }
  describe();
}

/** Some browsers never give the sound back to what had it: it is asked for anew, once somebody looks at the page. */
setInterval(() => {
  if (!capture?.dead || document.hidden) return;
  stop();
  start();
}, HEARTBEAT);

function join(rate) {
  // Of a stream that was abandoned nothing more is told.
  const current = (act) => (told) => made === stream && act(told);
  const made = new Stream(
    () => address("v1/stream", {}, token),
    greet,
    { source: mine, rate, frame: FRAME },
    { opened: () => events.hurry(), message: received, lost: current(missed), state: current(showStream) },
  );
  return made;
}

function missed(seconds) {
  lost = seconds;
  describe();
}

function showStream(state) {
  streamState = state;
  if (state.kind === "closed") stream = null;
  if (state.kind === "refused") {
    if (state.code !== "unauthorised") giveUp();
    refused(state);
  }
  describe();
}

/** It would be refused again, so nothing that waits can be sent. */
function giveUp() {
  const hopeless = stream;
  stop();
  hopeless.abandon();
}

/** What the microphone does, in words; and what the button would do. */
function describe() {
  const on = capture !== null;
  get("talk").dataset.on = on;
  say("talk-label", on ? "Stop" : "Start");
  get("name").disabled = on || stream !== null;
  say("doing", doing());
}

function doing() {
  if (!capture) return stream ? "Waiting for the last words" : "The microphone is off";
  if (!stream) return "Waiting for the microphone";
  const gone = lost ? `; ${Math.round(lost)} s were lost` : "";
  if (streamState.kind === "waiting") return `${sentence(streamState.reason)}. What you say is kept and sent later${gone}`;
  if (streamState.kind !== "open") return `Connecting. What you say is kept${gone}`;
  if (still) return `The system took the microphone (a call, a locked screen?). Touch the page to continue${gone}`;
  if (silence >= SILENT) return "No sound comes from the microphone: is it muted?";
  return `Listening${gone}`;
}

get("talk").addEventListener("click", () => (capture ? stop() : start()));

get("name").value = mine;
get("name").addEventListener("change", () => {
  const name = get("name").value.trim();
  if (name) {
    if (selected === mine) selected = name;
    transcripts.forgetUnheard(mine);
    mine = name;
    remember("name", mine);
  }
  get("name").value = mine;
  draw();
});
remember("name", mine);

// --- reading ---------------------------------------------------------------------------------------------------------

let due = false;

/** Once for all that changed since the last picture. */
function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    showSources(transcripts, { mine, selected }, select);
    showTranscript(transcripts.of(selected), invitation());
  });
}

function select(name) {
  if (name !== selected) {
    say("lag", "–");
    say("latency", "–");
  }
  selected = name;
  draw();
}

function invitation() {
  if (selected !== mine) return `Nothing has been heard from ${selected} yet.`;
  return capture ? "Speak: your words appear here." : "Press Start and speak: your words appear here while you talk.";
}

const finals = () => transcripts.of(selected).finals;

async function copy() {
  const text = FORMATS.txt.write(finals());
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyTheOldWay(text);
  say("copy", "Copied");
  setTimeout(() => say("copy", "Copy"), 1500);
}

/** A page that is not from https:// has no clipboard of its own. */
function copyTheOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  get("copy").focus();
}

function download(name) {
  const { type, write } = FORMATS[name];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(finals())], { type: `${type};charset=utf-8` }));
  link.download = `${selected}.${name}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

get("copy").addEventListener("click", () => copy().catch((error) => notice(`Copying failed: ${error.message}.`)));
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => download(button.dataset.format));
}
get("clear").addEventListener("click", () => {
  transcripts.of(selected).clear();
  draw();
});
get("latest").addEventListener("click", toEnd);
get("dismiss").addEventListener("click", () => notice(""));

// --- begin -----------------------------------------------------------------------------------------------------------

get("retry").addEventListener("click", () => events.open());
window.addEventListener("online", () => events.open());
window.addEventListener("resize", () => meter.clear());
addEventListener("pagehide", () => capture?.stop());

notice(impossible() ?? "");
events.open();
meter.clear();
draw();
