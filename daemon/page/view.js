/* The document: what is shown of transcripts and of the microphone's level.
 *
 * Owns the elements and their classes. Knows nothing of connections or of audio; what a user does is handled elsewhere.
 */

import { shaded } from "./captions.js";

const UNSURE = [0.9, 0.75, 0.55]; // below each, a word is a shade lighter

const get = (id) => document.getElementById(id);

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const percent = (share) => `${Math.round(share * 100)} %`;

// --- the list of sources ---------------------------------------------------------------------------------------------

const STATES = { idle: "idle", listening: "listening", speech: "speaking" };
const entries = new Map(); // name -> its <li>

/** select(name): called when one is chosen. */
export function showSources(transcripts, { mine, selected }, select) {
  const names = [mine, ...transcripts.names.filter((name) => name !== mine)];
  for (const [name, entry] of entries) {
    if (!names.includes(name)) {
      entry.remove();
      entries.delete(name);
    }
  }
  names.forEach((name, at) => {
    if (!entries.has(name)) entries.set(name, makeEntry(name, select));
    const entry = entries.get(name);
    if (get("sources").children[at] !== entry) get("sources").insertBefore(entry, get("sources").children[at] ?? null);
    showEntry(entry, transcripts.of(name), name === selected, name === mine);
  });
}

function makeEntry(name, select) {
  const entry = make("li", "");
  const button = make("button", "source");
  button.type = "button";
  button.addEventListener("click", () => select(name));
  const title = make("span", "title");
  title.append(make("span", "dot"), make("span", "label", name), make("span", "own", "you"), make("span", "state"));
  button.append(title, make("span", "last"));
  entry.append(button);
  return entry;
}

function showEntry(entry, transcript, selected, mine) {
  const button = entry.firstElementChild;
  button.setAttribute("aria-current", selected ? "true" : "false");
  button.dataset.state = transcript.state;
  button.querySelector(".own").hidden = !mine;
  button.querySelector(".state").textContent = STATES[transcript.state];
  const last = button.querySelector(".last");
  const live = [...transcript.live.values()].at(-1);
  last.replaceChildren();
  if (live) last.append(live.stable, make("span", "tail", live.tail));
  else last.append(transcript.finals.at(-1)?.text ?? "");
}

// --- one transcript --------------------------------------------------------------------------------------------------

let shown = null; // the transcript whose finals the list holds
let following = true; // its end is to be seen, whatever comes or changes its size
const rows = new Map(); // final -> its <li>

export function showTranscript(transcript, invitation) {
  if (transcript !== shown) {
    forgetRows();
    following = true;
  }
  shown = transcript;
  get("heading").textContent = transcript.name;
  showFinals(transcript.finals);
  showLive(transcript.live);
  const nothing = !transcript.finals.length && !transcript.live.size;
  get("empty").hidden = !nothing;
  get("invitation").textContent = invitation;
  get("dropped").hidden = !transcript.dropped;
  get("dropped").textContent = `${transcript.dropped} earlier lines are no longer kept.`;
  for (const button of document.querySelectorAll(".tools button")) button.disabled = !transcript.finals.length;
  if (following && !nothing) toEnd();
}

export function toEnd() {
  get("transcript").scrollTop = get("transcript").scrollHeight;
}

let size = ""; // of the transcript when a person last scrolled in it, or it was brought to its end

const sizeOf = (element) => `${element.clientWidth}x${element.clientHeight}`;

get("transcript").addEventListener(
  "scroll",
  ({ target }) => {
    // A change of size moves it too, and says so first: nobody scrolled then.
    if (sizeOf(target) !== size) return;
    following = target.scrollHeight - target.scrollTop - target.clientHeight < 48;
    get("latest").hidden = following;
  },
  { passive: true },
);
new ResizeObserver(([{ target }]) => {
  size = sizeOf(target);
  if (following && get("empty").hidden) toEnd();
}).observe(get("transcript"));

function forgetRows() {
  rows.clear();
  get("finals").replaceChildren();
}

function showFinals(finals) {
  const list = get("finals");
  const kept = new Set(finals);
  for (const [final, row] of rows) {
    if (!kept.has(final)) {
      row.remove();
      rows.delete(final);
    }
  }
  let next = null;
  for (const final of [...finals].reverse()) {
    let row = rows.get(final);
    if (!row) {
      row = makeRow(final);
      rows.set(final, row);
      list.insertBefore(row, next);
    }
    next = row;
  }
}

function makeRow(final) {
  const row = make("li", "final");
  const text = make("p", "text");
  text.dir = "auto";
  if (final.language) text.lang = final.language;
  text.append(...shaded(final.text, final.words).map(makeWord));
  const about = make("p", "about");
  if (final.arrived !== null) {
    const time = make("time", "", new Date(final.arrived).toLocaleTimeString());
    time.dateTime = new Date(final.arrived).toISOString();
    about.append(time);
  } else about.append(make("span", "", "earlier"));
  const sure = make("span", "sure", percent(final.confidence));
  sure.title = "How sure the model is";
  about.append(sure);
  if (final.model === "teacher") {
    const teacher = make("span", "teacher", "teacher");
    teacher.title = "The student was not sure: its teacher decided this text";
    about.append(teacher);
  }
  row.append(text, about);
  return row;
}

function makeWord({ text, confidence }) {
  if (confidence === null) return text;
  const shade = UNSURE.filter((limit) => confidence < limit).length;
  const word = make("span", shade ? `word unsure-${shade}` : "word", text);
  word.title = percent(confidence);
  return word;
}

function showLive(live) {
  const lines = [...live.values()].map(({ stable, tail }) => {
    const line = make("p", "text");
    line.dir = "auto";
    line.append(make("span", "stable", stable), make("span", "tail", tail));
    return line;
  });
  get("live").replaceChildren(...lines);
}

// --- the level -------------------------------------------------------------------------------------------------------

const QUIET = -54; // dB: drawn as nothing
const BARS = 60;

/** The last seconds of the microphone's level, drawn as bars. */
export class Meter {
  #canvas = get("level");
  #levels = new Array(BARS).fill(0);
  #frames = 0;
  #peak = 0;
  #due = false;

  /** level: 0..1, every 20 ms. */
  add(level) {
    this.#peak = Math.max(this.#peak, level);
    this.#frames += 1;
    if (this.#frames % 3) return;
    this.#levels.push(this.#peak);
    this.#levels.shift();
    this.#peak = 0;
    this.#draw();
  }

  clear() {
    this.#levels.fill(0);
    this.#draw();
  }

  #draw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#paint();
    });
  }

  #paint() {
    const canvas = this.#canvas;
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const { width, height } = canvas;
    const step = width / BARS;
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    this.#levels.forEach((level, at) => {
      const loud = Math.max(0, 1 - (20 * Math.log10(level + 1e-9)) / QUIET);
      const tall = Math.max(2 * scale, loud * height);
      pen.fillStyle = style.getPropertyValue(level >= 0.99 ? "--bad" : loud > 0 ? "--accent" : "--line");
      pen.beginPath();
      pen.roundRect(at * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
      pen.fill();
    });
  }
}

// --- words here and there --------------------------------------------------------------------------------------------

export function say(id, text) {
  // Said again, it would be read out again.
  if (get(id).textContent !== text) get(id).textContent = text;
}

/** A sentence about what is wrong and what to do; "" for nothing. */
export function notice(text) {
  get("notice").hidden = !text;
  say("notice-text", text);
}
