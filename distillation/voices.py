"""Synthetic voices: text -> waveform, through Debian's espeak-ng, flite and festival, SVOX Pico, and two neural voices.

Owns the list of voices, which of them are held out, and how each program is called. Knows nothing of corpora or models.
Held-out voices are whole voices: no training clip was ever spoken by them.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from distillation import neural
from distillation.errors import DistillError
from streaming.job import SAMPLE_RATE, Waveform

ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
                  "en-us-nyc")  # fmt: skip
# Variants that sound like a person; the robots, whispers and effects of the collection are left out.
ESPEAK_VARIANTS = (
    "Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen "
    "Tweaky adam anika announcer antonio aunty belinda benjamin boris caleb david ed edward edward2 f1 f2 f3 f4 "
    "f5 grandma grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 linda m1 m2 m3 m4 m5 "
    "m6 m7 m8 marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 "
    "steph3 travis victor zac "
).split()
HELD_OUT_ESPEAK = frozenset("Andrea Gene Mario robert steph2 f4 m5 shelby".split())
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
PICO_VOICES = ("en-US", "en-GB")
FESTIVAL_VOICES = ("cmu_us_slt_arctic_hts", "kal_diphone", "ked_diphone")
HELD_OUT_FESTIVAL = frozenset({"ked_diphone"})

# The programs read a lone "a" as the article, and "a m" as "um".
_RESPELLED = ((" a m", " ay em"), (" p m", " pee em"))


class VoiceError(DistillError):
    """A speech program is missing or refused its text."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice with its settings. rate: 1 is the program's own speed, 1.2 is faster. pitch: espeak-ng's 0..99,
    Pico's 50..200.

    blend: the share of `variant` in Kokoro's voice, or Piper's liveliness.
    styles: where Kokoro's speakers lie, as in `neural.styles_of`.
    hertz: mean pitch of festival's diphones, 0: the voice's own.
    size: of their speaker: 1.1 has formants 1.1 times lower.
    """

    program: str
    name: str
    variant: str = ""
    rate: float = 1.0
    pitch: int = 50
    blend: float = 0.0
    styles: Path | None = None
    hertz: float = 0.0
    size: float = 1.0

    @property
    def speaker(self) -> str:
        return "/".join(
            part for part in (self.program, self.variant if self.program == "espeak" else self.name) if part
        )

    @property
    def set(self) -> str:
        """What the recipe weighs it by."""
        return "diphone" if self.hertz else self.program

    @property
    def held_out(self) -> bool:
        return self.variant in HELD_OUT_ESPEAK or self.name in HELD_OUT_FESTIVAL


def installed_programs() -> list[str]:
    return [program for program in ("espeak-ng", "flite", "text2wave") if shutil.which(program)]


def choose_voice(rng: random.Random, held_out: bool) -> Voice:
    """A random voice. Voices made from human recordings (flite, festival's HTS) weigh more: they carry over better."""
    if held_out:
        program = rng.choices(["espeak", "festival"], [0.75, 0.25])[0]
    else:
        program = rng.choices(["espeak", "flite", "festival"], [0.45, 0.40, 0.15])[0]
    if program == "espeak":
        variants = [name for name in ESPEAK_VARIANTS if (name in HELD_OUT_ESPEAK) == held_out]
        return Voice("espeak", rng.choice(ESPEAK_ACCENTS), rng.choice(variants), rng.uniform(0.75, 1.3),
                     rng.randint(25, 75))  # fmt: skip
    if program == "flite":
        return Voice("flite", rng.choices(FLITE_VOICES, [3, 3, 3, 1])[0], rate=rng.uniform(0.8, 1.25))
    names = [name for name in FESTIVAL_VOICES if (name in HELD_OUT_FESTIVAL) == held_out]
    return Voice("festival", rng.choice(names), rate=rng.uniform(0.85, 1.2))


def choose_diphone_voice(rng: random.Random) -> Voice:
    """The one diphone voice of training as a speaker of any size and pitch: else it would be learnt by heart."""
    return Voice("festival", "kal_diphone", rate=rng.uniform(0.8, 1.25), hertz=rng.uniform(80, 160),
                 size=rng.uniform(0.82, 1.15))  # fmt: skip


def choose_pico_voice(rng: random.Random) -> Voice:
    """One of Pico's two women as a speaker of any size and pitch, men among them. Only in training."""
    return Voice("pico", rng.choice(PICO_VOICES), rate=rng.uniform(0.8, 1.3), pitch=rng.randint(70, 130),
                 size=rng.uniform(0.9, 1.3))  # fmt: skip


def choose_neural_voice(rng: random.Random, styles: Path | None = None) -> Voice:
    """A random neural voice, in training only. styles: where Kokoro's speakers lie, as in `neural.styles_of`.

    Raises:
        NeuralVoiceError: they cannot be used.
    """
    names = list(neural.styles_of(styles))
    english = [name for name in names if name[0] in "ab"]
    # With English speakers at hand a tenth of joe is enough, and the others are a few accents.
    if rng.random() < (0.1 if english else 0.35):
        return Voice("piper", "joe", rate=rng.uniform(0.8, 1.25), blend=rng.uniform(0.4, 0.9))
    men = [name for name in names if name[1] == "m"]
    style, other = rng.sample(english if english and rng.random() < 0.85 else names, 2)
    # Women are most of the speakers: a man is in half of the blends at least.
    style = rng.choice([style, rng.choice(men)]) if other not in men else style
    return Voice("kokoro", style, other, rng.uniform(0.8, 1.2), blend=rng.uniform(0.0, 0.5), styles=styles)


def speak(text: str, voice: Voice) -> Waveform:
    """One sentence.

    Raises:
        VoiceError: the program is not installed, or produced no sound.
    """
    return speak_all([text], voice)[0]


def speak_all(texts: list[str], voice: Voice) -> list[Waveform]:
    """Several sentences in one voice: festival takes a second to start, so it is asked for many at once."""
    spoken = [_respell(text) for text in texts]
    if voice.program == "festival":
        return _festival(spoken, voice)
    if voice.program == "pico":
        return [_of_size(_at_peak(_pico(text, voice)), voice.size) for text in spoken]
    if voice.program in ("piper", "kokoro"):
        return [_at_peak(_neural(text, voice)) for text in spoken]
    command = _espeak_command if voice.program == "espeak" else _flite_command
    return [_wave(_run(command(text, voice))) for text in spoken]


def _respell(text: str) -> str:
    for written, said in _RESPELLED:
        text = (text + " ").replace(written + " ", said + " ").strip()
    return text


def _espeak_command(text: str, voice: Voice) -> list[str]:
    words_per_minute = str(int(165 * voice.rate))
    return ["espeak-ng", "--stdout", "-v", f"{voice.name}+{voice.variant}", "-s", words_per_minute, "-p",
            str(voice.pitch), text]  # fmt: skip


def _flite_command(text: str, voice: Voice) -> list[str]:
    stretch = f"duration_stretch={1 / voice.rate:.3f}"
    return ["flite", "-voice", voice.name, "--setf", stretch, "-t", text, "-o", "/dev/stdout"]


def _pico(text: str, voice: Voice) -> Waveform:
    engine = neural.voice_package("ttspico").TtsEngine(voice.name)
    # As with festival: what is to be played slower is spoken faster, and higher.
    engine.rate, engine.pitch = round(100 * voice.rate * voice.size), round(voice.pitch * voice.size)
    return np.frombuffer(engine.speak(text), np.int16).astype(np.float32) / np.float32(32768)


def _neural(text: str, voice: Voice) -> Waveform:
    if voice.program == "piper":
        return neural.speak_piper(text, voice.rate, voice.blend)
    styles = neural.styles_of(voice.styles)
    return neural.speak_kokoro(text, voice.rate, styles[voice.name], styles[voice.variant], voice.blend)


def _festival(texts: list[str], voice: Voice) -> list[Waveform]:
    with tempfile.TemporaryDirectory() as folder:
        script = [f"(voice_{voice.name})", f"(Parameter.set 'Duration_Stretch {1 / voice.rate / voice.size:.3f})"]
        if voice.hertz:
            # What is spoken faster and higher, then played slower, is of a bigger speaker at the same pace and pitch.
            mean, spread = voice.hertz * voice.size, voice.hertz * voice.size / 7
            script.append(f"(set! int_lr_params '((target_f0_mean {mean:.1f}) (target_f0_std {spread:.1f}) "
                          "(model_f0_mean 170) (model_f0_std 34)))")  # fmt: skip
        for number, text in enumerate(texts):
            path = Path(folder) / f"{number}.wav"
            script.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{path}" \'riff)')
        _run(["festival", "--pipe"], "\n".join(script).encode())
        waves = [_wave((Path(folder) / f"{number}.wav").read_bytes()) for number in range(len(texts))]
    return [_of_size(wave, voice.size) for wave in waves]


def _of_size(wave: Waveform, size: float) -> Waveform:
    return _at_peak(soxr.resample(wave, 1, size) if size != 1 else wave)


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=120).stdout
    except FileNotFoundError as error:
        raise VoiceError(f"{command[0]} is not installed: apt-get install espeak-ng flite festival "
                         "festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k") from error  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise VoiceError(f"{' '.join(command)}: {error.stderr.decode(errors='replace').strip()}") from error


def _wave(riff: bytes) -> Waveform:
    """Bytes of a WAV file (whose length field a pipe may have left wrong) -> 16 kHz mono, peak at 0.5."""
    samples, rate = soundfile.read(io.BytesIO(_with_true_length(riff)), dtype="float32")
    if samples.size == 0:
        raise VoiceError("the voice produced no sound")
    return _at_peak(soxr.resample(samples, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else samples)


def _at_peak(samples: Waveform) -> Waveform:
    peak = float(np.abs(samples).max()) or 1.0
    return np.asarray(samples * (0.5 / peak), dtype=np.float32)


def _with_true_length(riff: bytes) -> bytes:
    marker = riff.find(b"data")
    if marker < 0:
        raise VoiceError("the voice produced no sound")
    header, body = riff[8 : marker + 4], riff[marker + 8 :]
    return riff[:4] + (len(riff) - 8).to_bytes(4, "little") + header + len(body).to_bytes(4, "little") + body
