/* Finals -> text files: plain text, SubRip, WebVTT.
 *
 * Owns the formats and how a transcript's times are laid on one line. Pure: knows nothing of the page.
 */

const LINE = 42; // characters of a subtitle's line,
const LINES = 2; // and how many at once: what broadcasters keep to

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
    for (const { start, end, lines } of split(final)) made.push({ start: start + offset, end: end + offset, lines });
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

/** A final -> what is shown at once, {start, end, lines}: long ones are cut at words, where their times are known. */
function split(final) {
  const words = final.words?.length ? final.words : evenly(final);
  const rows = [];
  for (const { start, end, text } of words.filter((each) => each.text.trim())) {
    const word = text.trim();
    const row = rows.at(-1);
    if (!row || row.text.length + 1 + word.length > LINE) rows.push({ start, end, text: word });
    else Object.assign(row, { text: `${row.text} ${word}`, end });
  }
  if (rows.length <= LINES) return [{ start: final.start, end: final.end, lines: rows.map((row) => row.text) }];
  const parts = [];
  for (let at = 0; at < rows.length; at += LINES) {
    const part = rows.slice(at, at + LINES);
    parts.push({ start: part[0].start, end: part.at(-1).end, lines: part.map((row) => row.text) });
  }
  return parts;
}

/** The text's words when nobody knows their times: each takes the same. */
function evenly({ start, end, text }) {
  const texts = text.split(/\s+/);
  const step = (end - start) / texts.length;
  return texts.map((word, at) => ({ text: word, start: start + at * step, end: start + (at + 1) * step }));
}
