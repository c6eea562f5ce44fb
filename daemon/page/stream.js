/* This page's own stream: frames of audio in, over a connection that may come and go.
 *
 * Owns what waits while there is no connection, how much of it, and the order of a stream's messages. Knows nothing of
 * where the audio comes from or what becomes of the text.
 */

import { Link } from "./link.js";

const LONGEST_WAIT = 60; // seconds of audio that wait for a connection; beyond it the oldest are lost, and counted
const ON_THE_WAY = 65536; // bytes that are handed to the browser at once: more tells us nothing of a stalled network
const STALLED = 10000; // ms in which nothing got away

/** on: as for a Link, and lost(seconds): audio that nobody will hear, so far. */
export class Stream {
  #link;
  #start;
  #on;
  #queue = [];
  #seconds; // of a frame
  #lost = 0;
  #stopping = false;
  #stopped = false;
  #moved = 0; // when something last got away
  #timer = 0;

  constructor(where, greet, { source, rate, frame }, on) {
    this.#start = { type: "start", source, sample_rate: rate, encoding: "pcm_s16le", channels: 1, words: true };
    this.#seconds = frame;
    this.#on = on;
    this.#link = new Link(where, greet, {
      ...on,
      opened: (greeting) => {
        on.opened(greeting);
        this.#link.send(JSON.stringify(this.#start));
        this.#moved = Date.now();
        this.#pump();
      },
    });
  }

  open() {
    this.#link.open();
  }

  /** See `Link`. */
  hurry() {
    this.#link.hurry();
  }

  /** For a while no frame will come: what was said until now becomes final. */
  pause() {
    this.#queue.push(JSON.stringify({ type: "flush" }));
    this.#pump();
  }

  /** One frame, an ArrayBuffer. */
  push(frame) {
    this.#queue.push(frame);
    if (this.#queue.length * this.#seconds > LONGEST_WAIT) {
      this.#queue.shift();
      this.#lost += this.#seconds;
      this.#on.lost(this.#lost);
    }
    this.#pump();
  }

  /** Nothing more will be pushed: what waits is sent, then the last finals come, then it closes. */
  stop() {
    this.#stopping = true;
    this.#pump();
  }

  /** At once, whatever is still open. */
  abandon() {
    clearTimeout(this.#timer);
    this.#link.close();
  }

  #pump() {
    clearTimeout(this.#timer);
    const unsent = this.#link.unsent;
    if (unsent === null || this.#stopped) return;
    if (unsent < ON_THE_WAY) this.#moved = Date.now();
    else if (Date.now() - this.#moved > STALLED) this.#link.lost("the network is too slow");
    while (this.#queue.length && this.#link.unsent !== null && this.#link.unsent < ON_THE_WAY) {
      this.#link.send(this.#queue.shift());
    }
    if (this.#queue.length) this.#timer = setTimeout(() => this.#pump(), 50);
    else if (this.#stopping) this.#end();
  }

  #end() {
    this.#stopped = true;
    this.#link.send(JSON.stringify({ type: "stop" }));
    this.#link.finish();
  }
}
