"""The layering rule, enforced on the imports of the whole tree.

`daemon` imports `streaming`; `streaming` never imports `daemon`, asyncio, threading or sockets, and reads no
configuration. Inside `streaming`, the stream half never imports torch and `streaming/whisper/` never hears of streams:
they share only `job.py`. Inside `daemon`, only `app.py` (wiring) and `stream.py` (one client's pump) may know any
neighbour. Every other file knows `streaming.events` and its own edge; what it knows beyond that is named in
`ALSO_KNOWS`, as for the two that do a part of the wiring, `pipeline.py` (engines, streams) and `ports.py` (listening).

`violations` judges one file from its source. It is itself tested on sources that break each rule.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("streaming", "daemon", "distillation")

CONCURRENCY_AND_SOCKETS = {
    "asyncio", "threading", "concurrent", "multiprocessing", "queue", "signal", "sched",
    "socket", "socketserver", "ssl", "select", "selectors", "http", "urllib", "requests", "httpx",
    "websockets", "aiomqtt", "paho", "anyio", "trio",
}  # fmt: skip
CONFIGURATION = {"yaml", "tomllib", "configparser", "argparse", "dotenv", "pydantic", "pydantic_settings"}
MODEL_LIBRARIES = {"torch", "transformers", "safetensors", "torchaudio", "accelerate"}
LATE_IN_THE_DAEMON = {"torch", "transformers", "sounddevice", "zeroconf"}
"""Slow to import, or absent on some machines: the daemon imports them inside the functions that need them."""

ENTRY_POINTS = {"daemon.cli", "daemon.__main__"}
KNOW_SEVERAL = {"daemon.app", "daemon.stream"}
VOCABULARIES = {
    "daemon.metrics", "daemon.faults", "daemon.config", "daemon.sources", "daemon.edges", "daemon.access",
    "daemon.release", "daemon.logs", "daemon.dialects.words",
}  # fmt: skip
"""Known to every edge, and knowing none: the counters, a client's faults, the settings' types, the sources' states,
what listening edges have in common, who may do what, which release this is, what a log line speaks of, and how a client
is shown what it sent."""

ALSO_KNOWS = {
    "daemon.config": {  # the defaults are those of the library's own settings
        "streaming.session",
        "streaming.segment",
        "streaming.vad",
        "streaming.confidence",
        "streaming.job",
    },
    "daemon.scheduler": {"streaming.job"},  # what it carries
    "daemon.health": {"streaming.job", "daemon.scheduler"},  # the canary is a job, the progress is the scheduler's
    "daemon.files": {"streaming.recording"},  # what decodes them
    "daemon.microphone": {"daemon.sound"},  # the program that it starts, and its errors
    "daemon.mqtt": {"daemon.broker", "daemon.discovery", "daemon.spool"},  # its own parts, which know nothing of it
    # The streams' half of the wiring: engines, scheduler and hub, joined for the service and for commands without one.
    "daemon.pipeline": {
        "daemon.cores",
        "daemon.gpu",
        "daemon.hub",
        "daemon.scheduler",
        "daemon.stream",
        "streaming.job",
        "streaming.text",
        "streaming.vad",
        "streaming.whisper.checkpoint",
        "streaming.whisper.engine",
    },
    "daemon.gateway": {"daemon.hub", "daemon.pipeline", "daemon.stream"},  # what all ports have behind them
    # The edges' half of the wiring: which of them serve, and what is behind each.
    "daemon.ports": {
        "daemon.announce",
        "daemon.descriptors",
        "daemon.dialects.codec",
        "daemon.dialects.deepgram",
        "daemon.dialects.native",
        "daemon.dialects.openai_realtime",
        "daemon.dialects.vosk",
        "daemon.dialects.whisperlive",
        "daemon.gateway",
        "daemon.server",
        "daemon.uploads",
        "daemon.web",
        "daemon.wyoming",
    },
    "daemon.manager": {"daemon.health", "daemon.notify"},  # what feeds the watchdog, and by what it is told
    # Those who take new settings over, and those who are told.
    "daemon.reloader": {
        "daemon.credentials",
        "daemon.manager",
        "daemon.pipeline",
        "daemon.ports",
        "daemon.reload",
    },
    # It connects as the service does, and asks whether zeroconf's library is there.
    "daemon.check": {"daemon.announce", "daemon.broker"},
    # One listener: it picks who answers; and streams wait there for their clients.
    "daemon.server": {
        "daemon.conversation",
        "daemon.dialects.codec",
        "daemon.dialects.native",
        "daemon.door",
        "daemon.entrance",
        "daemon.peer",
        "daemon.resume",
        "daemon.web",
    },
    # Any dialect, by its shape, over one socket; and what it leaves behind when that drops.
    "daemon.conversation": {"daemon.dialects.codec", "daemon.peer", "daemon.resume"},
    "daemon.dialects.native": {"daemon.dialects.codec"},  # the shape that each dialect has
    "daemon.peer": {"daemon.dialects.codec"},  # the close codes that all share
    "daemon.entrance": {"daemon.dialects.codec"},  # a request, as all ports have it
    "daemon.uploads": {  # the other half of that port: one dialect's files, read as `transcribe` reads them
        "daemon.dialects.codec",
        "daemon.dialects.openai_files",
        "daemon.dialects.openai_realtime",
        "daemon.dialects.transcript",
        "daemon.door",
        "daemon.entrance",
        "daemon.files",
        "daemon.web",
    },
    "daemon.dialects.openai_files": {"daemon.dialects.openai_session"},
    "daemon.dialects.openai_realtime": {
        "daemon.dialects.codec",
        "daemon.dialects.openai_session",
        "daemon.dialects.transcript",
    },
    "daemon.dialects.wyoming": {"daemon.dialects.transcript"},  # texts that can only grow
    "daemon.dialects.deepgram": {"daemon.dialects.codec"},
    "daemon.dialects.vosk": {"daemon.dialects.codec"},
    "daemon.dialects.whisperlive": {"daemon.dialects.codec"},
    "daemon.wyoming": {"daemon.dialects.wyoming"},  # the listener of one protocol
    # Commands about checkpoints: where they lie, and what is in them.
    "daemon.pull": {"streaming.whisper.locate"},
    # Everything that an import is made of: its reading, its writing, and the name that it gets.
    "daemon.imports": {
        "daemon.pull",
        "streaming.files",
        "streaming.whisper.checkpoint",
        "streaming.whisper.formats.foreign",
        "streaming.whisper.formats.read",
        "streaming.whisper.layout",
        "streaming.whisper.weights",
        "streaming.whisper.locate",
    },
    "daemon.models": {
        "streaming.whisper.locate",
        "streaming.whisper.checkpoint",
        "streaming.whisper.weights",
        "daemon.pull",
    },
}
"""Exceptions, each with its reason: importer -> what else it may import."""


@dataclass(frozen=True)
class Import:
    module: str  # as dotted as the source tells: "streaming.job" for `from streaming import job` too
    line: int
    late: bool  # inside a function
    function: str = ""  # the outermost function it is in


# --- reading sources -------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """`streaming/whisper/__init__.py` -> `streaming.whisper`, relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, *, package: bool = False) -> list[Import]:
    """Every import, wherever it stands. One under `if TYPE_CHECKING:` counts: to know a type is to know its room."""
    return list(_walk(ast.parse(source), module if package else module.rpartition(".")[0], ""))


def _walk(node: ast.AST, package: str, function: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom | ast.Call):
            for name in _names(child, package):
                yield Import(name, child.lineno, bool(function), function)
        inside = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = function or child.name
        yield from _walk(child, package, inside)


def _names(node: ast.Import | ast.ImportFrom | ast.Call, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call):
        return _dynamic(node)
    base = node.module or ""
    if node.level:
        ancestors = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*ancestors, *([node.module] if node.module else [])])
    # `from streaming import job` knows streaming.job; `from streaming.job import Job` knows streaming.job.
    return [f"{base}.{alias.name}" if _is_package(base) else base for alias in node.names]


def _dynamic(call: ast.Call) -> list[str]:
    """`importlib.import_module("x")` and `__import__("x")` of a name that is written out."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("import_module", "__import__") or not call.args:
        return []
    argument = call.args[0]
    return [argument.value] if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else []


def _is_package(dotted: str) -> bool:
    return dotted.partition(".")[0] in TREES and (ROOT / dotted.replace(".", "/")).is_dir()


def reads_environment(source: str) -> list[int]:
    """Lines that name `os.environ` or `os.getenv`, however they were imported."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        named = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb")
        taken = isinstance(node, ast.ImportFrom) and node.module == "os"
        taken = taken and any("env" in alias.name for alias in node.names)  # type: ignore[attr-defined]  # ImportFrom
        if named or taken:
            lines.append(node.lineno)  # type: ignore[attr-defined]  # both kinds have a place
    return lines


# --- the rule --------------------------------------------------------------------------------------------------------


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """What one file does that the rule forbids; empty when it keeps to it."""
    found = [
        f"{module}:{each.line} imports {each.module}: {reason}"
        for each in imports_of(source, module, package=package)
        if (reason := _forbidden(module, each))
    ]
    if _in(module, "streaming"):
        found += [
            f"{module}:{line} reads the environment: configuration is the daemon's"
            for line in reads_environment(source)
        ]
    return found


def _in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _forbidden(module: str, imported: Import) -> str | None:
    match module.partition(".")[0]:
        case "streaming":
            return _forbidden_to_streaming(module, imported.module)
        case "daemon":
            return _forbidden_to_daemon(module, imported)
        case _:
            return "distillation is offline: it knows no service" if _in(imported.module, "daemon") else None


def _forbidden_to_streaming(module: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top in ("daemon", "distillation"):
        return "streaming is the library under it"
    if top in CONCURRENCY_AND_SOCKETS:
        return "streaming has no concurrency and no sockets"
    if top in CONFIGURATION:
        return "streaming reads no configuration"
    if _in(module, "streaming.whisper"):
        if top == "streaming" and not _in(name, "streaming.whisper") and not _in(name, "streaming.job"):
            return "the model half shares only streaming.job with the stream half"
        return None
    if top in MODEL_LIBRARIES:
        return "the stream half does not know the model's libraries"
    if _in(name, "streaming.whisper"):
        return "the stream half shares only streaming.job with the model half"
    return None


def _forbidden_to_daemon(module: str, imported: Import) -> str | None:
    name = imported.module
    if name.partition(".")[0] in LATE_IN_THE_DAEMON and not imported.late:
        return "slow, or not everywhere: import it inside the function that needs it"
    if _in(name, "distillation"):
        allowed = module == "daemon.cli" and imported.late and "distill" in imported.function
        return None if allowed else "the service does not know the training; only `whisperd distill` asks for it"
    if module in ENTRY_POINTS | KNOW_SEVERAL or _in(name, module):
        return None
    if name in ALSO_KNOWS.get(module, ()):
        return None
    if _in(name, "streaming") and not _in(name, "streaming.events"):
        return "an edge knows streaming.events alone; app.py and stream.py know the rest"
    if _in(name, "daemon") and name != "daemon" and name not in VOCABULARIES:
        return "an edge knows no neighbour; app.py and stream.py join them"
    return None


# --- the tree --------------------------------------------------------------------------------------------------------


def sources() -> list[Path]:
    return [path.relative_to(ROOT) for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=str)
def test_every_file_keeps_to_the_rule(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert violations(source, module_name(path), package=path.name == "__init__.py") == []


def test_every_exception_is_needed() -> None:
    known = {
        module_name(path): {each.module for each in imports_of((ROOT / path).read_text(), module_name(path))}
        for path in sources()
    }
    for module, also in ALSO_KNOWS.items():
        assert also <= known.get(module, set()), f"{module} no longer imports some of these: strike them"


def test_the_tree_is_there() -> None:
    found = {module_name(path) for path in sources()}
    assert {"streaming.session", "streaming.job", "streaming.whisper", "daemon"} <= found


def loads(statement: str, libraries: set[str]) -> set[str]:
    """Which of `libraries` are loaded after `statement` in a fresh interpreter."""
    script = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & {libraries!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    assert loads("import daemon.cli", LATE_IN_THE_DAEMON | MODEL_LIBRARIES) == set()


def test_the_stream_half_loads_neither_models_nor_loops() -> None:
    half = [module_name(path) for path in sources() if path.parts[0] == "streaming" and "whisper" not in path.parts]
    assert "streaming.session" in half
    assert loads("import " + ", ".join(half), MODEL_LIBRARIES | {"asyncio"}) == set()


def test_a_library_that_is_loaded_is_seen() -> None:
    assert loads("import asyncio", {"asyncio", "torch"}) == {"asyncio"}


# --- the checker, on sources that break the rule ---------------------------------------------------------------------

BREACHES = [
    ("streaming.session", "import daemon.app"),
    ("streaming.session", "from daemon import app"),
    ("streaming.session", "from distillation.corpus import clips"),
    ("streaming.session", "import asyncio"),
    ("streaming.session", "def f():\n    import threading"),
    ("streaming.vad", "from concurrent.futures import ThreadPoolExecutor"),
    ("streaming.audio", "import socket as s"),
    ("streaming.audio", "import yaml"),
    ("streaming.audio", "import importlib\nimportlib.import_module('asyncio')"),
    ("streaming.audio", "__import__('websockets.sync')"),
    ("streaming.whisper.engine", "import os\nx = os.environ['HOME']"),
    ("streaming.whisper.engine", "from os import getenv"),
    ("streaming.whisper.engine", "from os import environ as e"),
    ("streaming.text", "import torch.nn.functional as F"),
    ("streaming.text", "from transformers import AutoTokenizer"),
    ("streaming.text", "if TYPE_CHECKING:\n    import torch"),
    ("streaming.session", "from streaming.whisper.engine import Engine"),
    ("streaming.session", "from streaming import whisper"),
    ("streaming.session", "from .whisper import engine"),
    ("streaming.whisper.engine", "from streaming.events import Event"),
    ("streaming.whisper.engine", "from streaming import session"),
    ("streaming.whisper.engine", "from .. import text"),
    ("streaming.whisper.engine", "from ..text import Text"),
    ("daemon.engine_room", "import torch"),
    ("daemon.app", "import transformers"),
    ("daemon.microphone", "try:\n    import sounddevice\nexcept OSError:\n    pass"),
    ("daemon.app", "from distillation import corpus"),
    ("daemon.cli", "import distillation.cli"),
    ("daemon.cli", "def run():\n    import distillation.cli"),
    ("daemon.mqtt", "from daemon.hub import Hub"),
    ("daemon.mqtt", "from . import hub"),
    ("daemon.mqtt", "def late():\n    from .hub import Hub"),
    ("daemon.server", "from streaming.session import Session"),
    ("daemon.server", "from streaming import session"),
    ("daemon.hub", "import streaming"),
    ("daemon.dialects.native", "from daemon.server import Server"),
    ("daemon.wyoming", "from daemon.server import Server"),
    ("daemon.announce", "import zeroconf"),
    ("daemon.dialects.native", "from ..hub import Hub"),
    ("daemon.faults", "from daemon.hub import Hub"),
    ("daemon.scheduler", "from streaming.session import Session"),
    ("daemon.scheduler", "from daemon.web import Web"),
    ("daemon.pipeline", "from daemon.server import Server"),
    ("daemon.ports", "from daemon.hub import Hub"),
    ("daemon.ports", "from daemon.stream import Stream"),
    ("daemon.gateway", "from daemon.ports import Ports"),
    ("daemon.manager", "from daemon.app import Service"),
    ("distillation.corpus", "from daemon.config import Settings"),
]

KEEPING = [
    ("streaming.session", "from streaming.job import Job\nfrom streaming import events\nimport numpy"),
    ("streaming.whisper.engine", "import torch\nfrom streaming.job import Job\nfrom streaming.whisper.mel import mel"),
    ("streaming.whisper.engine", "from .mel import mel\nfrom ..job import Job\nfrom .. import job"),
    ("streaming.whisper.engine", "import os\npath = os.path.join('a', 'b')"),
    ("daemon.app", "from daemon import hub, mqtt\nfrom streaming.session import Session\nimport asyncio"),
    ("daemon.app", "def load():\n    from streaming.whisper.engine import Engine\n    import torch"),
    ("daemon.stream", "from daemon.hub import Hub\nfrom streaming.audio import AudioDecoder"),
    ("daemon.mqtt", "import aiomqtt\nfrom streaming.events import Final\nfrom daemon import metrics"),
    ("daemon.mqtt", "from streaming import events"),
    ("daemon.scheduler", "from streaming.job import Job"),
    ("daemon.microphone", "def open_stream():\n    import sounddevice"),
    ("daemon.cli", "def distill(arguments):\n    from distillation.cli import main"),
    ("daemon.config", "import os\nimport yaml\nprint(os.environ)"),
    ("distillation.corpus", "import torch\nfrom streaming.whisper import mel"),
]


@pytest.mark.parametrize(("module", "source"), BREACHES)
def test_a_breach_is_seen(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(("module", "source"), KEEPING)
def test_what_keeps_to_the_rule_is_let_be(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_breach_is_told_with_its_place_and_reason() -> None:
    assert violations("x = 1\nimport torch", "streaming.text") == [
        "streaming.text:2 imports torch: the stream half does not know the model's libraries"
    ]


def test_relative_imports_of_a_package_start_at_the_package_itself() -> None:
    assert violations("from .session import Session", "streaming.whisper", package=True) == []
    assert violations("from ..session import Session", "streaming.whisper", package=True) != []
