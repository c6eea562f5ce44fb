"""The README and docs/ tell the truth: each command is run, and prints what they say; each link leads somewhere.

The commands run in a house of their own: a home without anybody's settings, a clone with a virtual environment, the
service with the shipped models, and a broker. What stands in them for a reader's own (HOST, BROKER, the usual ports) is
replaced first.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import PATIENCE, broker, free_port, process
from pages import COMMANDS, MARKS, PAGES, ROOT, Block, all_blocks, blocks, comments

BLOCKS = all_blocks()
RUN = [block for block in BLOCKS if block.language in COMMANDS and block.mark != "not run"]
LIMIT = 8 * PATIENCE


# --- the house -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """clone: where commands run. places: what is written in the pages -> what it is here."""

    clone: Path
    environment: dict[str, str]
    places: dict[str, str]

    def here(self, command: str) -> str:
        for written, here in self.places.items():
            command = command.replace(written, here)
        return command

    def start(self, arguments: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments, cwd=self.clone, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str, language: str) -> tuple[int, str]:
        """The exit code, and all that was printed."""
        with self.start(_arguments(self.here(command), language)) as popen:
            try:
                output, _ = popen.communicate(timeout=LIMIT)
            finally:
                _kill(popen)
        return popen.returncode, output

    def run_until(self, command: str, text: str) -> tuple[int, str]:
        """The same of what runs for ever: until it has printed `text`; then Ctrl-C."""
        output = ""
        with self.start(_arguments(self.here(command), "sh")) as popen:
            assert popen.stdout is not None
            watch = threading.Timer(LIMIT, _kill, [popen])
            watch.start()
            try:
                for line in popen.stdout:
                    output += line
                    if text in line:
                        os.killpg(popen.pid, signal.SIGINT)
                popen.wait()
            finally:
                watch.cancel()
                _kill(popen)
        return popen.returncode, output


def _arguments(command: str, language: str) -> list[str]:
    return ["python", "-c", command] if language == "python" else ["bash", "-euo", "pipefail", "-c", command]


def _kill(popen: subprocess.Popen[str]) -> None:
    if popen.poll() is None:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def _clone(folder: Path) -> Path:
    """As after `git clone` and `make`: the tree, and a virtual environment that needs nothing more."""
    clone = folder / "whisperd"
    clone.mkdir()
    for each in ROOT.iterdir():
        if not each.name.startswith(".") or each.name == ".ci":
            (clone / each.name).symlink_to(each)
    venv = clone / ".venv"
    venv.mkdir()
    for each in Path(sys.prefix).iterdir():
        if each.name not in (".run", ".test"):
            (venv / each.name).symlink_to(each)
    for stamp in (".run", ".test"):
        (venv / stamp).touch()
    return clone


def _environment(clone: Path, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "WHISPERD_"))}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        # Nobody's port is taken from them, and what is said of a machine is said of one without a GPU.
        "WHISPERD_SERVER__PORT": "0",
        "WHISPERD_MODELS__DEVICE": "cpu",
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    home = folder / "home"
    (home / ".config").mkdir(parents=True)
    clone = _clone(folder)
    with broker(folder) as mosquitto:
        for program in ("mosquitto_sub", "mosquitto_pub"):  # where they look for options
            (home / ".config" / program).write_text(f"-p {mosquitto.port}\n")
        sections = {
            "models": {"device": "cpu"},
            "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
            "wyoming": {"host": "127.0.0.1", "port": 0},
            "dialects": {"vosk": (vosk := free_port()), "whisperlive": (whisperlive := free_port())},
        }
        state = str(home / ".local" / "state" / "whisperd")
        with process(folder, sections, STATE_DIRECTORY=state) as daemon:
            address = daemon.url.removeprefix("ws://")
            wyoming = daemon.log.partition("listening on tcp://127.0.0.1:")[2].split()[0]
            places = {
                "localhost:8765": address, "127.0.0.1:8765": address, "10300": wyoming,
                "127.0.0.1:2700": f"127.0.0.1:{vosk}",
                "127.0.0.1:9090": f"127.0.0.1:{whisperlive}",
                "BROKER": "127.0.0.1", "HOST:8765": address,
            }  # fmt: skip
            yield House(clone, _environment(clone, home), places)


# --- what is printed -------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """Without what differs each time: numbers, ids, and how wide a column of numbers is; nor what differs with a
    processor's arithmetic: whether a model hears a comma or the end of a sentence.
    """
    masked = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    masked = re.sub(r"\d+(\.\d+)?", "0", masked)
    masked = re.sub(r"(?<=[a-z])[.,!?](?=[\s\"'<]|$)", "", masked, flags=re.MULTILINE).casefold()
    return [re.sub(r"  +", "  ", line.strip()) for line in masked.splitlines() if line.strip()]


def prints(said: str, printed: str) -> bool:
    """Whether that is what it prints; `...` stands for what is left out."""
    pattern = "".join(r"(.*\n)*" if line == "..." else f"{re.escape(line)}\n" for line in lines(said))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines(printed))) is not None


def output_after(block: Block) -> str | None:
    """What the page says that the program in `block` prints."""
    after = next((each for each in blocks(block.page) if each.line > block.line), None)
    return after.text if after is not None and after.mark == "output of the program above" else None


@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_command_does_what_the_page_says(block: Block, house: House) -> None:
    if block.mark == "until":
        code, printed = house.run_until(block.text, block.reason)
        assert block.reason in printed, printed
        assert code in (0, 128 + signal.SIGINT, -signal.SIGINT), printed
        return
    for command, said in block.commands:
        code, printed = house.run(command, block.language)
        assert (code != 0) is (block.mark == "fails"), f"{command} ended with {code}:\n{printed}"
        if block.language == "python":
            said = output_after(block) or ""
        if said and block.mark != "output varies":
            assert prints(said, printed), f"{command} printed:\n{printed}\nand not:\n{said}"


# --- the pages themselves --------------------------------------------------------------------------------------------


def test_there_are_commands_of_every_kind() -> None:
    kinds = {(block.language, block.mark) for block in BLOCKS}
    assert {
        ("sh", ""),
        ("sh", "until"),
        ("console", ""),
        ("console", "fails"),
        ("python", ""),
        ("sh", "not run"),
    } <= kinds


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in (*COMMANDS, "yaml", "json", "text"), f"{block.name}: ```sh, ```console, ```text, ..."
    if block.language not in COMMANDS:
        command = re.search(
            r"^(\$ |(sudo )?(whisperd|make|pip|apt-get|curl|systemctl|python3?) )", block.text, re.MULTILINE
        )
        assert command is None, f"{block.name}: {command and command[0]!r} is a command: make it ```sh or ```console"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_comment_before_a_block_is_one_that_the_tests_know(page: Path) -> None:
    for comment in comments(page):
        assert MARKS.fullmatch(comment), f"{page.name}: <!-- {comment} -->: see tests/daemon/pages.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], target


def test_every_page_is_found_from_the_entrance_and_every_picture_is_shown() -> None:
    entrance = PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in entrance, page.name
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert f"images/{picture.name}" in everything, picture.name


def test_every_error_of_the_port_is_in_the_protocol() -> None:
    told = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    files = (
        "common/permissions", "common/sources", "core/hub", "core/stream", "dialects/native", "endpoints/limits",
        "endpoints/websocket", "service/app",
    )  # fmt: skip
    sources = [ROOT / "daemon" / f"{name}.py" for name in files]
    sources += [ROOT / "streaming" / "audio.py", ROOT / "streaming" / "session.py"]
    codes = {
        code
        for source in sources
        for code in re.findall(r"\b(?:Fault|Error|AudioFormatError)\(\s*\"([a-z]+(?:_[a-z]+)*)\"", source.read_text())
    }
    assert len(codes) > 20
    assert [code for code in sorted(codes) if f"`{code}`" not in told] == []


def test_masking_keeps_what_matters() -> None:
    assert prints(
        "ready after 4.4 s\n...\nEvery word was right.\n", "ready after 12 s\n\nx\ny\nEvery word was right.\n"
    )
    assert prints('{"id":"8150cf8a7bed471abaa02157e3c8cb79-1"}', '{"id":"00000000000000000000000000000000-12"}')
    assert prints("Roses. They are.\n...\n", "Roses, they are!\nx\n")
    assert not prints("turn on the light\n", "turn off the light\n")
    assert not prints("one\n", "one\ntwo\n")
