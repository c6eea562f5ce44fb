/* What was said, by source: events in, transcripts out.
 *
 * Owns the order of finals, what is still open, and that nothing is taken twice, whichever connection brought it.
 * Pure: knows nothing of sockets, of the document or of the time of day, which is handed in.
 */

const MOST_FINALS = 2000; // of a source; the oldest go first, and `dropped` counts them
const OPEN = 15000; // ms that an utterance without news stays open: one in which nothing was said gets no final
const MOST_SOURCES = 200; // the one that has been silent for the longest goes first

/** One source. finals: in order, each with `arrived` (ms, null for a replayed one) and `part` (which run it is of). */
class Transcript {
  constructor(name) {
    this.name = name;
    this.state = "idle"; // idle, listening, speech
    this.finals = [];
    this.live = new Map(); // utterance -> {stable, tail, seq, arrived}
    this.dropped = 0;
    this.newest = 0; // seq of the newest final
    this.complete = 0; // seq up to which no final is missing
    this.behind = false; // some are missing, and will be replayed
    this.heard = 0; // seq of the newest partial or final
    this.part = 0;
    this.seen = new Set(); // seqs of this run's finals
  }

  /** Another run of the service counts from one again, and will not end what the last one began. */
  restart() {
    this.live.clear();
    this.newest = this.complete = this.heard = 0;
    this.behind = false;
    this.part += 1;
    this.seen.clear();
    this.state = "idle";
  }

  /** Whether `event` changed anything. */
  receive(event, arrived) {
    switch (event.type) {
      case "speech_started":
        this.state = "speech";
        return true;
      case "speech_stopped":
        this.state = "listening";
        return true;
      case "partial":
        return this.#partial(event, arrived);
      case "final":
        return this.#final(event, arrived);
    }
    return false;
  }

  clear() {
    this.finals = [];
    this.dropped = 0;
  }

  /** Close what has had no news for long; whether there was any. */
  tidy(now) {
    const before = this.live.size;
    this.#close(({ arrived }) => now - arrived > OPEN);
    return this.live.size < before;
  }

  #partial({ utterance, stable, tail, seq }, arrived) {
    if (seq <= this.heard) return false;
    this.heard = seq;
    this.live.set(utterance, { stable, tail, seq, arrived });
    return true;
  }

  #final(event, arrived) {
    if (this.seen.has(event.seq)) return false;
    this.seen.add(event.seq);
    // Finals come in order: an earlier utterance that is still open has none.
    this.#close((open, utterance) => open.seq < event.seq && utterance <= event.utterance);
    this.heard = Math.max(this.heard, event.seq);
    this.newest = Math.max(this.newest, event.seq);
    if (!this.behind) this.complete = this.newest;
    this.#insert({ ...event, arrived, part: this.part });
    return true;
  }

  #close(over) {
    for (const [utterance, open] of this.live) if (over(open, utterance)) this.live.delete(utterance);
  }

  /** Mostly at the end; a replayed one may belong before those that came live. */
  #insert(final) {
    let at = this.finals.length;
    while (at && this.finals[at - 1].part === final.part && this.finals[at - 1].seq > final.seq) at -= 1;
    this.finals.splice(at, 0, final);
    if (this.finals.length > MOST_FINALS) {
      this.seen.delete(this.finals.shift().seq);
      this.dropped += 1;
    }
  }
}

export class Transcripts {
  #sources = new Map();
  #run = null;

  /** Names in the order of their first appearance. */
  get names() {
    return [...this.#sources.keys()];
  }

  of(name) {
    let found = this.#sources.get(name);
    if (!found) {
      if (this.#sources.size >= MOST_SOURCES) this.#forget();
      found = new Transcript(name);
      this.#sources.set(name, found);
    }
    return found;
  }

  /** The run of the service whose events follow. */
  begin(run) {
    if (run === this.#run) return;
    if (this.#run !== null) for (const each of this.#sources.values()) each.restart();
    this.#run = run;
  }

  /** Whether `event` changed its source. `arrived`: ms, or null where it is a replay. */
  receive(event, arrived) {
    return event.source !== undefined && this.of(event.source).receive(event, arrived);
  }

  /** Of the listed sources those with finals that are not here: {source, since, until}; until `caughtUp`. */
  missing(listed) {
    const missing = [];
    for (const { source, final } of listed) {
      const transcript = this.of(source);
      transcript.behind = final > transcript.complete;
      if (transcript.behind) missing.push({ source, since: transcript.complete, until: final });
    }
    return missing;
  }

  caughtUp(source) {
    const transcript = this.of(source);
    transcript.behind = false;
    transcript.complete = transcript.newest;
  }

  /** `name` is not ours any more, and nothing was ever heard of it. */
  forgetUnheard(name) {
    if (!this.#sources.get(name)?.finals.length) this.#sources.delete(name);
  }

  /** Whether anything that had no news for long was closed. */
  tidy(now) {
    return [...this.#sources.values()].filter((each) => each.tidy(now)).length > 0;
  }

  #forget() {
    const last = (each) => each.finals.at(-1)?.arrived ?? 0;
    const [oldest] = [...this.#sources.values()].sort((a, b) => last(a) - last(b));
    this.#sources.delete(oldest.name);
  }
}

/** `text` cut into pieces {text, confidence}: confidence is null between words. The text is what counts. */
export function shaded(text, words) {
  const pieces = [];
  let at = 0;
  for (const word of words ?? []) {
    const bare = word.text.trim();
    const found = bare ? text.indexOf(bare, at) : -1;
    if (found < 0) continue;
    if (found > at) pieces.push({ text: text.slice(at, found), confidence: null });
    pieces.push({ text: bare, confidence: word.confidence });
    at = found + bare.length;
  }
  if (at < text.length) pieces.push({ text: text.slice(at), confidence: null });
  return pieces;
}
