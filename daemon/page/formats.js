/* Finals -> text files: plain text, SubRip, WebVTT.
 *
 * Owns the formats and how a transcript's times are laid on one line. Pure: knows nothing of the page.
 */

const LINE = 42; // characters of a subtitle's line, and two lines at once: what broadcasters keep to
const CUE = 2 * LINE;

export const FORMATS = {
  txt: { type: "text/plain", write: txt },
  srt: { type: "application/x-subrip", write: srt },
  vtt: { type: "text/vtt", write: vtt },
};

export function txt(finals) {
  return finals.map((final) => `${final.text}\n`).join("");
}

export function srt(finals) {
  // An arrow in a text would look like a time.
  const text = (lines) => lines.join("\n").replaceAll("-->", "→");
  return cues(finals)
    .map((cue, at) => `${at + 1}\n${clock(cue.start, ",")} --> ${clock(cue.end, ",")}\n${text(cue.lines)}\n\n`)
    .join("");
}

export function vtt(finals) {
  const text = (lines) => lines.join("\n").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const body = cues(finals).map((cue) => `${clock(cue.start, ".")} --> ${clock(cue.end, ".")}\n${text(cue.lines)}\n\n`);
  return `WEBVTT\n\n${body.join("")}`;
}

/** Seconds -> 01:02:03,004. */
export function clock(seconds, point) {
  const all = Math.round(seconds * 1000);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const milliseconds = String(all % 1000).padStart(3, "0");
  return `${two(all / 3600000)}:${two((all / 60000) % 60)}:${two((all / 1000) % 60)}${point}${milliseconds}`;
}

/** What a player shows at once: {start, end, lines}, in order and without overlap. */
export function cues(finals) {
  const made = [];
  for (const { final, offset } of timeline(finals)) {
    for (const { start, end, text } of split(final)) {
      made.push({ start: start + offset, end: end + offset, lines: lines(text) });
    }
  }
  return made;
}

/** Each stream's times begin at zero: {final, offset} puts those of a later stream behind the earlier ones.
 *
 * By the time that passed between them where it is known, and never before the end of what came before.
 */
export function timeline(finals) {
  const laid = [];
  let offset = 0;
  let origin = null; // when the first stream began, in ms of the page's time
  let last = null;
  for (const final of finals) {
    const began = final.arrived === null ? null : final.arrived - final.latency_ms - final.end * 1000;
    if (last && (final.part !== last.part || final.utterance <= last.utterance)) {
      const passed = began === null || origin === null ? 0 : (began - origin) / 1000;
      offset = Math.max(last.end + offset - final.start, passed, offset);
    }
    if (origin === null && began !== null) origin = began - offset * 1000;
    laid.push({ final, offset });
    last = final;
  }
  return laid;
}

/** A final too long to be shown at once -> several, at its words where their times are known. */
function split(final) {
  if (final.text.length <= CUE) return [final];
  const words = final.words?.length ? final.words : evenly(final);
  const parts = [];
  for (const word of words) {
    const text = word.text.trim();
    const part = parts.at(-1);
    if (!part || part.text.length + 1 + text.length > CUE) parts.push({ start: word.start, end: word.end, text });
    else Object.assign(part, { text: `${part.text} ${text}`, end: word.end });
  }
  return parts;
}

function evenly(final) {
  const texts = final.text.split(/\s+/);
  const step = (final.end - final.start) / texts.length;
  return texts.map((text, at) => ({ text, start: final.start + at * step, end: final.start + (at + 1) * step }));
}

function lines(text) {
  const made = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const line = made.at(-1);
    if (line === undefined || line.length + 1 + word.length > LINE) made.push(word);
    else made[made.length - 1] = `${line} ${word}`;
  }
  return made;
}
