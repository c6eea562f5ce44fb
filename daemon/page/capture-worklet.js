/* On the audio thread: the microphone's floats -> frames of 16-bit samples.
 *
 * Owns the framing and the rounding. Knows nothing of where the frames go.
 */

class CaptureProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.size = processorOptions.frame;
    this.begin();
  }

  begin() {
    this.samples = new Int16Array(this.size);
    this.filled = 0;
    this.level = 0;
  }

  process([[channel]]) {
    for (const value of channel ?? []) {
      const sample = Math.max(-1, Math.min(1, value));
      this.level = Math.max(this.level, Math.abs(sample));
      this.samples[this.filled++] = Math.round(sample * 32767);
      if (this.filled === this.size) this.send();
    }
    return true;
  }

  send() {
    this.port.postMessage({ samples: this.samples.buffer, level: this.level }, [this.samples.buffer]);
    this.begin();
  }
}

registerProcessor("capture", CaptureProcessor);
