/* Connections to the service that come back by themselves.
 *
 * Owns when to try again, when that is hopeless, and what is said about it; and the list of sources that a connection
 * begins with. Knows nothing of audio, of transcripts or of the document.
 */

const PAUSES = [0.5, 1, 2, 4, 8, 15]; // seconds
const PROVEN = 5000; // ms: a connection that lived so long was a good one
const PATIENCE = 10000; // ms for an answer
const HOPELESS = new Set([1003, 1007, 1008, 1009]); // it would say the same again

/** Seconds before the next try after so many failures in a row; spread, so that not all pages come at once. */
export function pause(failures, random = Math.random) {
  return PAUSES[Math.min(Math.max(failures, 1), PAUSES.length) - 1] * (0.75 + 0.5 * random());
}

/** The address of a websocket beside this page, whatever path a proxy put us under. */
export function address(path, query, token) {
  const url = new URL(path, document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  if (token) url.searchParams.set("token", token);
  return url;
}

/** {run, sources}. Throws the service's error event, or what went wrong on the way. */
export async function listing(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const signal = AbortSignal.timeout(PATIENCE);
  const answer = await fetch(new URL("v1/sources", document.baseURI), { headers, cache: "no-store", signal });
  const body = await answer.json();
  if (!answer.ok) throw body;
  return body;
}

/** The finals of `source` from behind `since` up to `until`, as far as they are kept; whether it got so far. */
export function replay({ source, since, until }, token, receive) {
  return new Promise((resolve) => {
    const socket = new WebSocket(address("v1/events", { source, since }, token));
    const end = (done) => {
      clearTimeout(timer);
      socket.onclose = socket.onmessage = null;
      socket.close();
      resolve(done);
    };
    const timer = setTimeout(() => end(false), PATIENCE);
    socket.onclose = () => end(false);
    socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      if (event.type !== "final") return;
      receive(event);
      if (event.seq >= until) end(true);
    };
  });
}

/** One connection, again and again until it is closed.
 *
 * where: () -> its address.
 * greet: async () -> greeting; messages wait for it. What it throws is a failed connection.
 * on: opened(greeting), message(event), state({kind, ...}): connecting, open, waiting (seconds, reason),
 *     refused (code, message): no more tries until `open` is called again, closed.
 */
export class Link {
  #where;
  #greet;
  #on;
  #socket = null;
  #timer = 0;
  #waiting = false;
  #failures = 0;
  #refusal = null;
  #ending = false;

  constructor(where, greet, on) {
    this.#where = where;
    this.#greet = greet;
    this.#on = on;
  }

  /** Bytes that are on their way, or null where there is no connection. */
  get unsent() {
    return this.#socket?.greeted && this.#socket.readyState === WebSocket.OPEN ? this.#socket.bufferedAmount : null;
  }

  send(data) {
    this.#socket.send(data);
  }

  /** Now, and from now on. */
  open() {
    this.#drop();
    this.#ending = false;
    this.#connect();
  }

  /** Somebody else got through: do not wait for the next try. */
  hurry() {
    if (this.#waiting) this.open();
  }

  /** The service will close it, and that shall be the end. */
  finish() {
    this.#ending = true;
  }

  close() {
    this.#drop();
    this.#on.state({ kind: "closed" });
  }

  /** It does not answer any more, as far as one can tell from here. */
  lost(reason) {
    if (!this.#socket) return;
    this.#drop();
    this.#again(reason);
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#waiting = false;
    this.#socket?.close();
    this.#socket = null;
  }

  #connect() {
    this.#waiting = false;
    this.#on.state({ kind: "connecting" });
    this.#refusal = null;
    const socket = new WebSocket(this.#where());
    socket.greeted = false;
    socket.held = [];
    this.#socket = socket;
    socket.onopen = () => this.#opened(socket);
    socket.onmessage = ({ data }) => this.#received(socket, JSON.parse(data));
    socket.onclose = ({ code }) => this.#closed(socket, code);
  }

  async #opened(socket) {
    socket.opened = Date.now();
    let greeting;
    try {
      greeting = await this.#greet();
    } catch (error) {
      if (socket === this.#socket && error.type === "error") this.#refusal ??= error;
      socket.close();
      return;
    }
    if (socket !== this.#socket || socket.readyState !== WebSocket.OPEN || this.#refusal) return;
    socket.greeted = true;
    this.#on.state({ kind: "open" });
    this.#on.opened(greeting);
    for (const event of socket.held.splice(0)) this.#on.message(event);
  }

  #received(socket, event) {
    if (socket !== this.#socket) return;
    if (event.type === "error" && event.fatal) this.#refusal = event;
    else if (socket.greeted) this.#on.message(event);
    else socket.held.push(event);
  }

  #closed(socket, code) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    if (Date.now() - socket.opened > PROVEN) this.#failures = 0;
    if (this.#ending) this.#on.state({ kind: "closed" });
    else if (HOPELESS.has(code) || this.#refusal?.code === "unauthorised") {
      const { code: why = "", message = "The service refused the connection." } = this.#refusal ?? {};
      this.#on.state({ kind: "refused", code: why, message });
    } else this.#again(this.#reason(code));
  }

  #reason(code) {
    if (this.#refusal) return this.#refusal.message;
    if (code === 1001) return "the service is shutting down";
    if (code === 1013) return "the service is busy";
    return "the service cannot be reached";
  }

  #again(reason) {
    this.#failures += 1;
    const seconds = pause(this.#failures);
    this.#waiting = true;
    this.#timer = setTimeout(() => this.#connect(), seconds * 1000);
    this.#on.state({ kind: "waiting", seconds, reason });
  }
}
