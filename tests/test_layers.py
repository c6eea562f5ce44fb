"""The layering rule, enforced on the imports of the whole tree.

`daemon` imports `streaming`; `streaming` never imports `daemon`, asyncio, threading or sockets, and reads no
configuration. Inside `streaming`, the stream half never imports torch and `streaming/whisper/` never hears of streams:
they share only `job.py`. Inside `daemon` there are rooms, and `ROOMS` says who knows whom: endpoints, MQTT and
microphones never know each other, and nobody knows the service that joins them.

`violations` judges one file from its source. It is itself tested on sources that break each rule.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
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

ROOMS = {
    "common": set[str](),
    "settings": {"common"},
    "dialects": {"common"},
    "engines": {"common", "settings"},
    "core": {"common", "settings", "engines"},
    "mqtt": {"common", "settings"},
    "microphone": {"common", "settings"},
    "home_assistant": {"common", "settings"},
    "endpoints": {"common", "settings", "dialects", "core"},
    "service": {
        "common",
        "settings",
        "dialects",
        "engines",
        "core",
        "mqtt",
        "microphone",
        "home_assistant",
        "endpoints",
    },
    "commands": {
        "common",
        "settings",
        "engines",
        "core",
        "mqtt",
        "microphone",
        "home_assistant",
        "endpoints",
        "service",
    },
}
"""The rooms of `daemon`, and whom each may know beside itself."""

KNOW_THE_LIBRARY = {"engines", "core", "commands"}
"""They run what `streaming` is: streams, engines, checkpoints. All others know only what comes in and goes out."""

IN_AND_OUT = {"streaming.events", "streaming.vocabulary"}

DEFAULTS = {f"streaming.{module}" for module in ("session", "segment", "vad", "confidence", "job")}
"""Where the settings' defaults are from: the library's own."""


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
            return _forbidden_to_distillation(module, imported.module)


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


def _forbidden_to_distillation(module: str, name: str) -> str | None:
    synthesis = "distillation.synthesis"
    if _in(name, "daemon"):
        return "distillation is offline: it knows no service"
    if _in(name, synthesis) and not _in(module, synthesis) and module != "distillation.cli":
        return "the recipe takes clips from a corpus, whoever spoke them"
    return None


def _forbidden_to_daemon(module: str, imported: Import) -> str | None:
    name = imported.module
    if name.partition(".")[0] in LATE_IN_THE_DAEMON and not imported.late:
        return "slow, or not everywhere: import it inside the function that needs it"
    if _in(name, "distillation"):
        allowed = module == "daemon.commands.cli" and imported.late and "distill" in imported.function
        return None if allowed else "the service does not know the training; only `whisperd distill` asks for it"
    room = _room(module)
    if _in(name, "daemon") and name != "daemon":
        other = _room(name)
        return None if other in ROOMS[room] | {room} else f"{room} does not know {other}"
    exchanged = any(_in(name, each) for each in IN_AND_OUT)
    if _in(name, "streaming") and not exchanged and room not in KNOW_THE_LIBRARY:
        allowed = room == "settings" and name in DEFAULTS
        return None if allowed else f"{room} knows streaming.events and the like alone"
    return None


def _room(module: str) -> str:
    return module.split(".")[1]


# --- the tree --------------------------------------------------------------------------------------------------------


def sources() -> list[Path]:
    return [path.relative_to(ROOT) for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=str)
def test_every_file_keeps_to_the_rule(path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert violations(source, module_name(path), package=path.name == "__init__.py") == []


def daemon_imports() -> dict[str, set[str]]:
    """Of each module of `daemon`, the others that it imports, wherever that stands."""
    paths = [path for path in sources() if path.parts[0] == "daemon"]
    modules = {module_name(path) for path in paths}
    return {
        module_name(path): {
            each.module for each in imports_of((ROOT / path).read_text(encoding="utf-8"), module_name(path))
        }
        & modules
        for path in paths
    }


def test_every_permission_is_needed() -> None:
    known: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, others in daemon_imports().items():
        if module.count(".") > 1:
            known[_room(module)] |= {_room(other) for other in others}
    assert {room: others - {room} for room, others in known.items()} == ROOMS


def test_nothing_goes_round_in_a_circle() -> None:
    """Between rooms, and between the modules of one."""
    list(TopologicalSorter(ROOMS).static_order())
    list(TopologicalSorter(daemon_imports()).static_order())


def test_every_module_has_a_room() -> None:
    assert {module for module in daemon_imports() if module.count(".") < 2} == {"daemon"} | {
        f"daemon.{room}" for room in ROOMS
    }


def test_the_tree_is_there() -> None:
    found = {module_name(path) for path in sources()}
    assert {"streaming.session", "streaming.job", "streaming.whisper", "daemon"} <= found


def loads(statement: str, libraries: set[str]) -> set[str]:
    """Which of `libraries` are loaded after `statement` in a fresh interpreter."""
    script = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & {libraries!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    assert loads("import daemon.commands.cli", LATE_IN_THE_DAEMON | MODEL_LIBRARIES) == set()


def test_the_stream_half_loads_neither_models_nor_loops() -> None:
    half = [module_name(path) for path in sources() if path.parts[0] == "streaming" and "whisper" not in path.parts]
    assert "streaming.session" in half
    assert loads("import " + ", ".join(half), MODEL_LIBRARIES | {"asyncio"}) == set()


def test_a_library_that_is_loaded_is_seen() -> None:
    assert loads("import asyncio", {"asyncio", "torch"}) == {"asyncio"}


# --- the checker, on sources that break the rule ---------------------------------------------------------------------

BREACHES = [
    ("streaming.session", "import daemon.service.app"),
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
    ("streaming.session", "from streaming.whisper.engine import WhisperEngine"),
    ("streaming.session", "from streaming import whisper"),
    ("streaming.session", "from .whisper import engine"),
    ("streaming.whisper.engine", "from streaming.events import Event"),
    ("streaming.whisper.engine", "from streaming import session"),
    ("streaming.whisper.engine", "from .. import text"),
    ("streaming.whisper.engine", "from ..text import Text"),
    ("daemon.core.pipeline", "import torch"),
    ("daemon.service.app", "import transformers"),
    ("daemon.microphone.capture", "try:\n    import sounddevice\nexcept OSError:\n    pass"),
    ("daemon.service.app", "from distillation import corpus"),
    ("daemon.commands.cli", "import distillation.cli"),
    ("daemon.commands.cli", "def run():\n    import distillation.cli"),
    ("daemon.mqtt.publisher", "from daemon.core.hub import Hub"),
    ("daemon.mqtt.publisher", "from ..core import hub"),
    ("daemon.mqtt.publisher", "def late():\n    from ..core.hub import Hub"),
    ("daemon.mqtt.publisher", "from daemon.microphone.source import Microphone"),
    ("daemon.mqtt.publisher", "from daemon.endpoints.websocket import Server"),
    ("daemon.microphone.source", "from daemon.endpoints import pages"),
    ("daemon.endpoints.websocket", "from daemon.mqtt.spool import Spool"),
    ("daemon.endpoints.websocket", "from streaming.session import Session"),
    ("daemon.endpoints.websocket", "from streaming import session"),
    ("daemon.mqtt.spool", "import streaming"),
    ("daemon.dialects.native", "from daemon.endpoints.websocket import Server"),
    ("daemon.dialects.native", "from ..core.hub import Hub"),
    ("daemon.endpoints.zeroconf", "import zeroconf"),
    ("daemon.common.errors", "from daemon.core.hub import Hub"),
    ("daemon.core.scheduler", "from daemon.endpoints.pages import Pages"),
    ("daemon.core.pipeline", "from daemon.dialects import native"),
    ("daemon.service.service_manager", "from daemon.commands.cli import main"),
    ("daemon.settings.schema", "from streaming.audio import AudioDecoder"),
    ("distillation.corpus", "from daemon.settings.schema import Settings"),
    ("distillation.train", "from distillation.synthesis import voices"),
]

KEEPING = [
    ("streaming.session", "from streaming.job import Job\nfrom streaming import events\nimport numpy"),
    ("streaming.whisper.engine", "import torch\nfrom streaming.job import Job\nfrom streaming.whisper.mel import mel"),
    ("streaming.whisper.engine", "from .mel import mel\nfrom ..job import Job\nfrom .. import job"),
    ("streaming.whisper.engine", "import os\npath = os.path.join('a', 'b')"),
    ("daemon.service.app", "from daemon.mqtt import publisher\nfrom streaming.events import Start\nimport asyncio"),
    ("daemon.core.pipeline", "def load():\n    from streaming.whisper.engine import WhisperEngine\n    import torch"),
    ("daemon.core.stream", "from daemon.core.hub import Hub\nfrom streaming.audio import AudioDecoder"),
    ("daemon.mqtt.publisher", "import aiomqtt\nfrom streaming.events import Final\nfrom . import spool"),
    ("daemon.mqtt.publisher", "from streaming import events"),
    ("daemon.core.scheduler", "from streaming.job import Job"),
    ("daemon.microphone.capture", "def open_stream():\n    import sounddevice"),
    ("daemon.commands.cli", "def distill(arguments):\n    from distillation.cli import main"),
    ("daemon.settings.schema", "import os\nimport yaml\nfrom streaming.vad import VadSettings\nprint(os.environ)"),
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
