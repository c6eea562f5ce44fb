/* The microphone: permission, the audio graph, and frames of 16-bit samples.
 *
 * Owns what the browser is asked for, the sentences that say why it was refused, and going on when the system took the
 * sound away for a while (a call, a locked screen): a browser says so at best, and some only send no more frames. Knows
 * nothing of sockets.
 */

const RATE = 16000; // what the models hear; a browser that cannot give it gives its own, and the service converts

export const FRAME = 0.02; // seconds

const LOOK = 500; // ms between two looks at whether sound comes
const STILL = 4000; // ms without a frame, from a context that says it runs: a busy page may be late by a second or two
const DEAD = 15000; // ms after which such a context will not come back

/** Why there can be no microphone here at all, or null. */
export function impossible(place = window) {
  if (place.isSecureContext === false) {
    return (
      "Browsers give a microphone only to pages from https:// or from localhost: set server.certificate and " +
      "server.key, or forward the port (ssh -L 8765:localhost:8765 HOST) and open http://localhost:8765/."
    );
  }
  if (!place.navigator.mediaDevices?.getUserMedia || !place.AudioWorkletNode) {
    return "This browser cannot record: it lacks getUserMedia or AudioWorklet.";
  }
  return null;
}

/** What getUserMedia threw -> what to do about it. */
export function explain(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return (
        "Access to the microphone was refused. Allow it for this page (the icon beside the address, or the system's privacy " +
        "settings), then press Start again. You need no microphone to read what others say."
      );
    case "NotFoundError":
    case "OverconstrainedError":
      return "No microphone was found. Plug one in, then press Start again.";
    case "NotReadableError":
    case "AbortError":
      return "The microphone does not start: another program may be using it. Close that, then press Start again.";
  }
  return `The microphone does not start: ${error.message || error.name}.`;
}

/** What may be the moment at which a browser lets sound through again. */
const TOUCHES = [
  [window, "pointerdown"],
  [window, "keydown"],
  [window, "focus"],
  [window, "pageshow"],
  [document, "visibilitychange"],
];

export class Capture {
  #media = null;
  #context = null;
  #source = null;
  #node = null;
  #told = null;
  #still = false;
  #heard = 0; // when a frame last came
  #timer = 0;
  #touched = () => this.#resume();

  /** Ask for the microphone; the sample rate. ended(): the device went away. Throws what `explain` explains. */
  async open(ended) {
    this.#media = await navigator.mediaDevices.getUserMedia({
      // The echo of a loudspeaker is nobody's speech. Noise is left in: the models learnt to hear through it.
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false, autoGainControl: true },
    });
    try {
      return await this.#prepare(ended);
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  stop() {
    for (const track of this.#media?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    clearInterval(this.#timer);
    for (const [place, name] of TOUCHES) place.removeEventListener(name, this.#touched);
    if (this.#node) this.#node.port.onmessage = null;
    if (this.#context) this.#context.onstatechange = null;
    this.#context?.close();
    this.#media = this.#context = this.#source = this.#node = null;
  }

  /** From now on frame(ArrayBuffer, level) every 20 ms; level is the loudest sample, 0..1. still(true): the system lets
   *  no sound through; still(false): it does again, and meanwhile all was tried that may help. */
  run(frame, still) {
    this.#told = still;
    this.#heard = performance.now();
    this.#node.port.onmessage = ({ data }) => {
      this.#heard = performance.now();
      this.#tell(false);
      frame(data.samples, data.level);
    };
    this.#source.connect(this.#node);
    this.#context.onstatechange = () => this.#look();
    this.#timer = setInterval(() => this.#look(), LOOK);
    for (const [place, name] of TOUCHES) place.addEventListener(name, this.#touched);
  }

  /** Whether only another microphone helps: it says that it runs, and has sent nothing for long. */
  get dead() {
    return this.#context?.state === "running" && performance.now() - this.#heard > DEAD;
  }

  #look() {
    if (this.#context.state === "running" && performance.now() - this.#heard < STILL) return;
    this.#tell(true);
    this.#resume();
  }

  #tell(still) {
    if (still === this.#still) return;
    this.#still = still;
    this.#told(still);
  }

  #resume() {
    // Some browsers let it go on only while somebody touches the page: asked again then, it succeeds.
    if (this.#still) this.#context.resume().catch(() => {});
  }

  async #prepare(ended) {
    this.#connect();
    const { sampleRate, audioWorklet } = this.#context;
    await audioWorklet.addModule(new URL("capture-worklet.js", document.baseURI));
    this.#node = new AudioWorkletNode(this.#context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { frame: Math.round(sampleRate * FRAME) },
    });
    this.#media.getAudioTracks()[0].onended = ended;
    await this.#context.resume();
    return sampleRate;
  }

  #connect() {
    this.#context = new AudioContext({ sampleRate: RATE });
    try {
      this.#source = this.#context.createMediaStreamSource(this.#media);
    } catch {
      // Some browsers do not join a context to a device of another rate.
      this.#context.close();
      this.#context = new AudioContext();
      this.#source = this.#context.createMediaStreamSource(this.#media);
    }
  }
}
