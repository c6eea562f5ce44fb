"""`whisperd models`: what is here, what is recommended, and fetching, from a stand-in for the model hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, ROOT

from daemon.commands import cli, models, pull
from daemon.commands.models import ADVICE, Machine

if TYPE_CHECKING:
    from checkpoints import Pair

pytestmark = pytest.mark.timeout(300)  # processes, each of which imports the hub's library

NAME = "somebody/whisper-small"
COMMIT = "c" * 40
LARGE = 50_000
"""Bytes from which on the stand-in keeps a file as the hub keeps large ones, under its SHA-256."""


# --- a hub -----------------------------------------------------------------------------------------------------------


@dataclass
class Hub:
    """One model, over the few routes that the library asks. What goes wrong is set by the test.

    break_at: the connection ends after so many bytes of the weights; stall: it stays open then, and sends no more.
    """

    files: dict[str, bytes]
    url: str = ""
    refuse: tuple[int, str] | None = None
    break_at: int | None = None
    stall: bool = False
    harmed: bool = False
    ranges: bool = True
    claimed: dict[str, Any] = field(default_factory=dict)
    lies: dict[str, Any] = field(default_factory=dict)  # over what it says of each file
    commit: Any = COMMIT
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, range
    released: threading.Event = field(default_factory=threading.Event)

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        size = self.claimed.get(path, len(content))
        entry = {
            "rfilename": path,
            "path": path,
            "type": "file",
            "size": size,
            "oid": git(content),
            "blobId": git(content),
        }
        if len(content) >= LARGE:
            entry["lfs"] = {"size": size, "sha256": sha(content), "oid": sha(content), "pointerSize": 134}
        return {**entry, **self.lies}


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def harm(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((path, self.headers.get("Range", "")))
        if hub.refuse is not None:
            status, code = hub.refuse
            self.send(b"{}", status, {"X-Error-Code": code} if code else {})
        elif not path.startswith((f"/api/models/{NAME}", f"/{NAME}/resolve/")):
            self.send(b"{}", HTTPStatus.NOT_FOUND, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self.send(json.dumps([hub.entry(each) for each in hub.files]).encode())
        elif path.startswith("/api/"):
            siblings = [hub.entry(each) for each in hub.files]
            self.send(json.dumps({"id": NAME, "sha": hub.commit, "siblings": siblings}).encode())
        else:
            self.file(path.rpartition("/")[2], body=body)

    def file(self, name: str, *, body: bool) -> None:
        hub, content = self.hub, self.hub.files[name]
        etag = sha(content) if len(content) >= LARGE else git(content)
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": str(hub.commit),
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
        }
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if not hub.ranges:
            begin = 0
        if hub.harmed and name.endswith(".safetensors"):
            content = harm(content)
        rest = content[begin:]
        status = HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK
        if not body or hub.break_at is None or not name.endswith(".safetensors"):
            self.send(rest, status, headers, body=body)
            return
        self.send(rest, status, headers, body=False)
        self.wfile.write(rest[: hub.break_at])
        self.wfile.flush()
        if hub.stall:
            hub.released.wait(PATIENCE)
        self.close_connection = True

    def send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, *, body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(english: Pair) -> Iterator[Hub]:
    files = {file.name: file.read_bytes() for file in sorted(english.teacher.iterdir()) if file.is_file()}
    files |= {"README.md": b"not wanted", "pytorch_model.bin": b"not wanted either"}
    made = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"hub": made}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    made.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Whisperd:
    """The command line in a process of its own, with a hub and a cache of its own."""

    folder: Path
    hub: Hub

    @property
    def environment(self) -> dict[str, str]:
        mine = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return {**kept, **mine}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.commands.cli", *arguments]

    def __call__(self, *arguments: str, **environment: str) -> Done:
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    @property
    def weights(self) -> Path:
        """Where the cache has them."""
        content = self.hub.files["model.safetensors"]
        return self.folder / "hub" / "models--somebody--whisper-small" / "blobs" / sha(content)

    @property
    def partial(self) -> Path:
        return self.weights.with_name(self.weights.name + pull.PARTIAL)

    def asked_of_the_weights(self) -> list[str]:
        return [ranged for path, ranged in self.hub.asked if path.endswith("/model.safetensors")]


@pytest.fixture
def whisperd(tmp_path: Path, hub: Hub) -> Whisperd:
    return Whisperd(tmp_path / "home", hub)


# --- fetching --------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_in_silence(whisperd: Whisperd, tmp_path: Path) -> None:
    """`run` says the command that fetches."""
    config = tmp_path / "whisperd.yaml"
    config.write_text(f"server: {{port: 0}}\nmodels: {{student: {NAME}, teacher: null}}\n")
    done = whisperd("run", "-c", str(config))
    assert done.code == 1
    assert f"fetch it with `whisperd models pull {NAME}`" in done.err
    assert whisperd.hub.asked == []


def test_what_was_fetched_is_found_without_a_network(
    whisperd: Whisperd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(whisperd.folder / "hub"))
    assert cli.main(["models", "show", NAME]) == 1
    assert f"fetch it with `whisperd models pull {NAME}`" in capsys.readouterr().err

    done = whisperd("models", "pull", NAME)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{NAME}: ")
    assert whisperd.weights.read_bytes() == whisperd.hub.files["model.safetensors"]
    assert not any("README" in path or ".bin" in path for path, _ in whisperd.hub.asked)

    whisperd.hub.asked.clear()
    assert cli.main(["models", "show", NAME]) == 0
    assert capsys.readouterr().out.startswith(f"{NAME}\n  directory ")
    assert cli.main(["models"]) == 0
    assert f"  {NAME}  " in capsys.readouterr().out
    assert whisperd.hub.asked == []


def test_a_download_that_was_killed_goes_on_where_it_was(whisperd: Whisperd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(whisperd.folder / "hub"))
    whisperd.hub.break_at, whisperd.hub.stall = 60_000, True
    popen = subprocess.Popen(whisperd.command("models", "pull", NAME), cwd=ROOT, env=whisperd.environment)
    deadline = time.monotonic() + 4 * PATIENCE
    while not (whisperd.partial.exists() and whisperd.partial.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a file has no event to wait for
    popen.kill()
    popen.wait()
    whisperd.hub.released.set()
    whisperd.hub.break_at = None
    have = whisperd.partial.stat().st_size
    assert 0 < have <= 60_000
    (begun,) = [each for each in models.here([]) if each.name == NAME]
    assert begun.size == have
    assert f"`whisperd models pull {NAME}`" in begun.state

    whisperd.hub.asked.clear()
    assert whisperd("models", "pull", NAME).code == 0
    assert f"bytes={have}-" in whisperd.asked_of_the_weights()
    assert whisperd.weights.read_bytes() == whisperd.hub.files["model.safetensors"]
    assert not whisperd.partial.exists()


def test_a_connection_that_breaks_is_taken_up_again(whisperd: Whisperd) -> None:
    size = len(whisperd.hub.files["model.safetensors"])
    whisperd.hub.break_at = size // 3 + 1
    assert whisperd("models", "pull", NAME).code == 0
    assert whisperd.weights.read_bytes() == whisperd.hub.files["model.safetensors"]
    assert len([ranged for ranged in whisperd.asked_of_the_weights() if ranged]) >= 2


def test_a_hub_that_knows_no_ranges_sends_the_whole_again(whisperd: Whisperd) -> None:
    whisperd.partial.parent.mkdir(parents=True)
    whisperd.partial.write_bytes(b"begun")
    whisperd.hub.ranges = False
    assert whisperd("models", "pull", NAME).code == 0
    assert whisperd.weights.read_bytes() == whisperd.hub.files["model.safetensors"]


def test_what_came_damaged_is_not_kept(whisperd: Whisperd) -> None:
    whisperd.hub.harmed = True
    done = whisperd("models", "pull", NAME)
    assert (done.code, done.out) == (1, "")
    assert "model.safetensors of somebody/whisper-small arrived damaged and was deleted: pull it again" in done.err
    assert not whisperd.weights.exists()
    assert not whisperd.partial.exists()


def test_what_was_damaged_later_is_fetched_again(whisperd: Whisperd) -> None:
    assert whisperd("models", "pull", NAME).code == 0
    content = whisperd.weights.read_bytes()
    whisperd.weights.write_bytes(harm(content))
    whisperd.hub.asked.clear()
    assert whisperd("models", "pull", NAME).code == 0
    assert whisperd.weights.read_bytes() == content
    assert len(whisperd.asked_of_the_weights()) == 1


@pytest.mark.parametrize(
    ("refuse", "sentence"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms at "),
        ((401, "RepoNotFound"), "has no model somebody/whisper-small: check the name, and HF_TOKEN"),
        ((500, ""), "answered 500 when asked for somebody/whisper-small: try again later"),
    ],
)
def test_a_hub_that_will_not(whisperd: Whisperd, refuse: tuple[int, str], sentence: str) -> None:
    whisperd.hub.refuse = refuse
    done = whisperd("models", "pull", NAME)
    assert done.code == 1
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_no_network(whisperd: Whisperd) -> None:
    done = whisperd("models", "pull", NAME, HF_ENDPOINT="http://127.0.0.1:1")
    assert done.code == 1
    assert "http://127.0.0.1:1 cannot be reached" in done.err
    assert "check the network" in done.err
    done = whisperd("models", "pull", NAME, HF_HUB_OFFLINE="1")
    assert done.code == 1
    assert "HF_HUB_OFFLINE is set, which forbids downloads: unset it" in done.err


def test_too_little_disk(whisperd: Whisperd) -> None:
    whisperd.hub.claimed["model.safetensors"] = 10**12
    done = whisperd("models", "pull", NAME)
    assert done.code == 1
    assert "needs 1000.00 GB more, but only " in done.err
    assert "make room, or set HF_HOME" in done.err
    assert whisperd.asked_of_the_weights() == []


def test_no_checkpoint(whisperd: Whisperd) -> None:
    del whisperd.hub.files["model.safetensors"]
    done = whisperd("models", "pull", NAME)
    assert done.code == 1
    assert "it is not a checkpoint that whisperd can read" in done.err


DIGESTS = [
    "/etc/passwd",
    "../../../precious",
    "",
    "0" * 39,
    "0" * 63 + "/",
    "A" * 40,
    5,
    ["a"],
    "0" * 40 + "\n",
    "\u0660" * 40,
]


@pytest.mark.parametrize(
    "lie",
    [
        *({"blobId": digest, "lfs": None} for digest in DIGESTS if digest),
        *({"lfs": {"size": 4, "sha256": digest, "pointerSize": 134}} for digest in DIGESTS),
        {"rfilename": "model-/../../../../precious-of-1.safetensors"},
        {"rfilename": "model-\\..\\-of-1.safetensors"},
        {"rfilename": 5},
        {"size": -1, "lfs": None},
        {"size": "many", "lfs": None},
        {"size": 1 << 60, "lfs": None},
        {"lfs": "x"},
    ],
    ids=str,
)
def test_nothing_that_a_hub_says_is_a_path(lie: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.lies = lie
    with pytest.raises(pull.PullError) as caught:
        pull.look_up(NAME)
    assert "answered with an invalid listing of" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("commit", ["../../..", "/tmp", "", None, 7, "c" * 41])
def test_a_commit_that_is_none(commit: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.commit = commit
    with pytest.raises(pull.PullError):
        pull.look_up(NAME)


def test_a_hub_that_wants_a_file_of_the_user(whisperd: Whisperd, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    whisperd.hub.lies = {"blobId": str(precious), "lfs": None}
    done = whisperd("models", "pull", NAME)
    assert done.code == 1
    assert "is not a digest" in done.err
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b/c", "", "-x/y z"])
def test_a_name_that_is_none(whisperd: Whisperd, name: str) -> None:
    done = whisperd("models", "pull", "--", name)
    assert done.code == 2
    assert "is not a name on the model hub" in done.err
    assert whisperd.hub.asked == []


def test_what_is_here_need_not_be_fetched(whisperd: Whisperd) -> None:
    done = whisperd("models", "pull", "tiny-en")
    assert (done.code, done.out) == (0, "tiny-en is already on this machine: there is nothing to fetch\n")


# --- what is here, what is recommended -------------------------------------------------------------------------------


def test_directories_and_what_is_wrong_with_them(english: Pair, tmp_path: Path) -> None:
    shutil.copytree(english.student, tmp_path / "mine" / "student")
    (tmp_path / "mine" / "other").mkdir()
    (tmp_path / "mine" / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty").mkdir()
    found = {
        each.name: each for each in models.here(map(str, (tmp_path / "mine", tmp_path / "empty", tmp_path / "no")))
    }
    student = found[str(tmp_path / "mine" / "student")]
    assert (student.layers, student.state) == ("2 + 2", "")
    assert student.size == (english.student / "model.safetensors").stat().st_size
    assert found[str(tmp_path / "mine" / "other")].state == "not a Whisper model (bert)"
    assert found[str(tmp_path / "empty")].state == "it contains no checkpoint"
    assert found[str(tmp_path / "no")].state == "there is no such directory"
    assert {"tiny-en (student)", "tiny-en (teacher)"} <= found.keys()


def test_what_others_left_in_the_cache(
    english: Pair, multilingual: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, only in part, and no Whisper at all."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, source in (("a--whole", english.student), ("a--part", multilingual.student), ("a--bert", None)):
        repository = tmp_path / f"models--{name}"
        snapshot = repository / "snapshots" / COMMIT
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        if source is None:
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_text('{"model_type": "bert"}')
        else:
            shutil.copytree(source, snapshot)
    (tmp_path / "models--a--part" / "snapshots" / COMMIT / "model.safetensors").unlink()
    found = {each.name: each.state for each in models.here([]) if each.where == "hub cache"}
    assert found.keys() == {"a/whole", "a/part"}
    assert found["a/whole"] == ""
    assert "`whisperd models pull a/part` fetches the rest" in found["a/part"]


@pytest.mark.parametrize(
    ("machine", "best"),
    [
        (Machine(1), "CPU, 2 cores"),
        (Machine(2), "CPU, 2 cores"),
        (Machine(4), "CPU, 4 cores"),
        (Machine(64, "Small", 4.0), "CPU, 4 cores"),
        (Machine(2, "Medium", 7.6), "GPU, 8 GB"),
        (Machine(8, "Medium", 7.6), "GPU, 8 GB"),
        (Machine(8, "Large", 23.7), "GPU, 24 GB"),
        (Machine(16, "Huge", 79.1), "GPU, 24 GB"),
    ],
)
def test_what_is_recommended(machine: Machine, best: str) -> None:
    text = models.listing([], machine)
    starred = [line for line in text.splitlines() if line.startswith("  *")]
    mine = [advice for advice in ADVICE if advice.machine == best]
    assert len(starred) == len(mine)
    for line, advice in zip(starred, mine, strict=True):
        assert all(word in line for word in (best, advice.student, advice.teacher))
    fetched = {line.split()[-1] for line in text.splitlines() if "whisperd models pull" in line}
    assert fetched == {name for advice in mine for name in advice.names} - {"tiny-en"}


def test_a_student_of_ones_own_is_recommended_and_not_fetched() -> None:
    text = models.listing([], Machine(4))
    assert "*  CPU, 4 cores  one of your own                   openai/whisper-base.en" in text
    assert "whisperd models pull openai/whisper-small.en" in text
    assert "pull one of your own" not in text


def test_every_recommendation_says_where_its_figures_are_from() -> None:
    assert all("card" in advice.figures for advice in ADVICE)


def test_what_is_in_one(english: Pair, multilingual: Pair) -> None:
    told = models.description(str(english.student), [str(english.teacher), str(multilingual.teacher), "tiny-en"])
    assert "decoder          2 layers, width 32, 2 heads" in told
    assert "mel bins         80" in told
    assert "languages        en (English only)" in told
    assert f"same encoder as  {english.teacher.name} (may be its student)" in told
    assert "same encoder as  none of those here" in models.description(str(multilingual.student), ["tiny-en"])
    assert "en de fr" in models.description(str(multilingual.student))


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ('{"model_type": "whisper", "encoder_layers": [[]]}', '{"lang_to_id": 5}'),
        ('{"model_type": ["whisper"]}', "5"),
        ("[" * 100_000, "[" * 100_000),
        ('{"model_type": "whisper"}', '{"lang_to_id": null}'),
    ],
    ids=["values", "type", "depth", "null"],
)
def test_a_hostile_checkpoint_is_listed_like_any_other(config: str, generation: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "generation_config.json").write_text(generation)
    (found,) = models.here([str(tmp_path)])[-1:]
    assert found.name == str(tmp_path)
    assert models.listing([found], Machine(2))
