"""`whisperd`: the command line.

Owns the arguments, the exit codes (0; 1 for a failure in the work; 2 for bad usage or configuration; 130 for Ctrl-C,
where that is not how a command is told to end), where logs go (standard error), and that no engine is at work when the
interpreter ends. Every command imports what it needs when it runs, so that `--help` and a mistyped key do not wait for
torch.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before numpy is imported: it multiplies small matrices of voice detection alone, for which a second thread only spins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from daemon.commands.output import OutputError, give_up_output, standard_output
from daemon.common.version import our_version

if TYPE_CHECKING:
    from daemon.commands.install import InstallPaths
    from daemon.commands.terminal import TerminalLines
    from daemon.core.audio_files import AudioFile
    from daemon.core.pipeline import Pipeline
    from daemon.settings.schema import Settings
    from streaming.vocabulary import Vocabulary

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["distill"]:
        return distill(arguments[1:])
    if arguments[:1] == ["bench"]:
        return bench(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "transcribe" and options.partials and options.long_form not in (None, "vad"):
        parser.error(
            f"--partials are of utterances, which --long-form {options.long_form} has not: leave one of them out"
        )
    with standard_output():
        return _exit_code(partial(_obey, options))


def _exit_code(work: Callable[[], int]) -> int:
    """Return the exit code of `work`, which may be interrupted, or have nowhere left to print to."""
    try:
        code = work()
        sys.stdout.flush()  # here, so that a reader who left is noticed here
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputError as error:
        give_up_output()
        if not error.unread:
            print(f"whisperd: {error}", file=sys.stderr)
        return FAILED


def _obey(options: argparse.Namespace) -> int:
    if options.command in _WITHOUT_SETTINGS:
        return _WITHOUT_SETTINGS[options.command](options)
    from daemon.common.errors import ConfigurationError
    from daemon.settings.load import load

    try:
        settings = load(options.config)
        return _COMMANDS[options.command](settings, options)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            print(f"whisperd: {line}", file=sys.stderr)
        return BAD_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whisperd",
        description="Live speech to text: speech from websockets or a microphone, text to websockets and MQTT.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {our_version() or 'not installed'}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "-c", "--config", type=Path, metavar="FILE",
        help="settings (default: ./whisperd.yaml or /etc/whisperd/whisperd.yaml, if there is one)",
    )  # fmt: skip

    commands.add_parser("run", parents=[config], help="run the service")

    files = commands.add_parser(
        "transcribe", parents=[config], help="transcribe sound files as fast as the machine allows",
        description="Transcribe sound files on the same path as live speech. Text goes to standard output, one line "
        "per utterance.",
    )  # fmt: skip
    files.add_argument("files", nargs="+", metavar="FILE", help="- is standard input")
    files.add_argument("--json", action="store_true", help="print one event per line; only finals, unless --partials")
    files.add_argument("--partials", action="store_true", help="print partials too")
    files.add_argument("--words", action="store_true", help="add the times and confidence of each word (with --json)")
    files.add_argument(
        "--vocabulary",
        metavar="FILE",
        type=_vocabulary,
        help="phrases that are to be heard, one per line, beside those of the settings",
    )
    files.add_argument(
        "--long-form",
        choices=("vad", "timestamps", "conditioned"),
        help="how files are cut: where nobody speaks, or in the models' longest windows by the timestamps of their "
        "text, and conditioned on the text before (default: files.long_form of the settings; vad with --partials)",
    )
    files.add_argument("--realtime", action="store_true", help="feed the audio at the pace of a microphone")

    microphone = commands.add_parser(
        "listen", parents=[config], help="live captions of the microphone in this terminal"
    )
    microphone.add_argument("--device", help="a device's number or part of its name; see `whisperd devices`")

    _add_models(commands.add_parser("models", parents=[config], help="list, fetch, import and export models"))
    commands.add_parser("devices", help="list the devices that can record")
    check = commands.add_parser("check", parents=[config], help="test every part and say what to do")
    check.add_argument("--json", action="store_true", help="print the answers as a JSON list of objects")
    for name, text in (
        ("install-service", "install units and settings for systemd on this machine"),
        ("uninstall-service", "remove the units; settings stay"),
    ):
        service = commands.add_parser(name, help=text)
        service.add_argument(
            "--user", action="store_true", help="for your own manager (systemctl --user), without root"
        )
        service.add_argument("--dry-run", action="store_true", help="only show what it would do")
        service.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="below DIR, for packagers")

    commands.add_parser(
        "bench", help="measure this machine (`whisperd bench` lists what can be measured)", add_help=False
    )
    commands.add_parser("distill", help="make your own student (`whisperd distill --help`)", add_help=False)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    listing = verbs.add_parser("list", help="list the models here and those recommended for this machine (the default)")
    listing.add_argument("directories", nargs="*", metavar="DIRECTORY", help="more directories with checkpoints")
    fetch = verbs.add_parser("pull", help="fetch a model from the hub; an interrupted download continues")
    fetch.add_argument("name", metavar="NAME", help="its name on the hub, such as distil-whisper/distil-large-v3")
    show = verbs.add_parser("show", help="describe a model")
    show.add_argument("name", metavar="NAME", help="a shipped name, a directory, an imported name, or a hub name")
    bring = verbs.add_parser(
        "import", help="import weights of another program",
        description="Import weights of faster-whisper (CTranslate2's folder), OpenAI (.pt) or whisper.cpp (ggml) as a "
        "model on this machine, whose name works like any other.",
    )  # fmt: skip
    bring.add_argument("source", type=Path, metavar="SOURCE", help="the folder with model.bin, or the file")
    bring.add_argument("--name", help="the model's name (default: that of SOURCE)")
    bring.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="its tokenizer.json, if there is none beside the weights"
    )
    bring.add_argument("--force", action="store_true", help="replace an earlier import of the same name")
    export = verbs.add_parser(
        "export", help="write a model in the plain Hugging Face layout", description="transformers can load the result."
    )
    export.add_argument("name", metavar="NAME", help="as for `show`; NAME/teacher is the teacher of a shipped pair")
    export.add_argument("--dtype", choices=("float16", "float32", "bfloat16"), default="float16", help="of the weights")
    export.add_argument("directory", type=Path, metavar="DIR", help="folder to create")
    export.add_argument("--force", action="store_true", help="write even if DIR is not empty")


# --- the commands ----------------------------------------------------------------------------------------------------


def run(settings: Settings, options: argparse.Namespace) -> int:
    from daemon.common.errors import ConfigurationError, ServiceError
    from daemon.common.logs import to_stderr
    from daemon.service.app import Service
    from daemon.service.signals import reload_on_signal, stop_on_signals
    from daemon.settings.environment import service_environment
    from daemon.settings.load import load

    environment = service_environment()
    to_stderr(settings.log.level, environment.journal, settings.log.format)
    log = logging.getLogger("whisperd")
    service: Service | None = None

    async def serve() -> None:
        nonlocal service
        service = Service(settings, environment)
        stop_on_signals(service.stop)
        reload_on_signal(partial(service.reload, lambda: load(options.config)))
        await service.run()

    code = OK
    try:
        asyncio.run(serve())
    except ServiceError as error:
        log.error("%s", error)
        code = FAILED
    except ConfigurationError as error:
        if settings.log.format == "text":
            raise
        log.critical("%s", error)  # a reader of JSON reads all of it
        code = BAD_USAGE
    return code if service is None else _leave(service.pipeline, code)


def _with_engines(settings: Settings, work: Callable[[Pipeline], Coroutine[Any, Any, int]]) -> int:
    """Return the exit code of a command that needs engines for a while."""
    from daemon.common.logs import to_stderr
    from daemon.core.pipeline import Pipeline

    to_stderr("warning")
    pipeline = Pipeline(settings)
    return _leave(pipeline, _exit_code(lambda: _run_interruptibly(work(pipeline))))


def _run_interruptibly(work: Coroutine[Any, Any, int]) -> int:
    """Return what `work` returns.

    The kernel may hand Ctrl-C to any thread, that of a busy engine too. Only a handler of the loop's own wakes the loop
    then.

    Raises:
        KeyboardInterrupt: it came; `work` was cancelled.
    """
    watched = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    )

    async def interruptible() -> int:
        task = asyncio.current_task()
        if watched and task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await work

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _leave(pipeline: Pipeline, code: int) -> int:
    """Return `code`. Where an engine is still busy, end the process here instead: torch would abort it later."""
    pipeline.close()
    try:
        ended = pipeline.ended()
    except KeyboardInterrupt:  # whoever asks a second time does not wait
        ended = False
    if not ended:
        logging.shutdown()
        os._exit(code)
    return code


def _vocabulary(path: str) -> Vocabulary:
    from daemon.settings.schema import vocabulary_in

    try:
        return vocabulary_in(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def transcribe(settings: Settings, options: argparse.Namespace) -> int:
    return _with_engines(settings, partial(_transcribe, options=options))


async def _transcribe(pipeline: Pipeline, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from daemon.commands.terminal import TerminalLines
    from daemon.common.errors import Fault, ServiceError
    from daemon.core.audio_files import AudioFile, FileError, printable
    from daemon.core.pipeline import running

    lines = TerminalLines(lambda line: tqdm.write(line, file=sys.stdout), json=options.json, partials=options.partials)
    failed = False
    try:
        async with running(pipeline):
            for path in options.files:
                try:
                    with contextlib.closing(AudioFile(path)) as file:
                        await _transcribe_file(pipeline, file, lines, options)
                        if missing := file.missing:
                            raise FileError(f"{file.name}: is damaged: {missing}")
                except FileError as error:
                    print(f"whisperd: {error}", file=sys.stderr)
                    failed = True
                except Fault as fault:
                    print(f"whisperd: {printable(path)}: {fault}", file=sys.stderr)
                    failed = True
    except ServiceError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        failed = True
    return FAILED if failed or lines.failed else OK


async def _transcribe_file(
    pipeline: Pipeline, file: AudioFile, lines: TerminalLines, options: argparse.Namespace
) -> None:
    from tqdm import tqdm

    from daemon.commands.terminal import show_all

    start = file.start(partials=options.partials, words=options.words)
    long_form = options.long_form or ("vad" if options.partials else pipeline.settings.files.long_form)
    start = replace(start, vocabulary=options.vocabulary or start.vocabulary, long_form=long_form)
    stream = pipeline.open_stream(start)
    printer = asyncio.create_task(show_all(stream.outbox, lines.show))
    began, heard = time.monotonic(), 0.0
    try:
        seconds_in_all = None if file.announced is None else round(file.announced, 1)
        shown = sys.stderr.isatty()
        with tqdm(total=seconds_in_all, unit="s", desc=file.name, leave=False, disable=not shown) as bar:
            async for audio, seconds in file.blocks():
                if printer.done():
                    printer.result()  # it failed: what is still heard would be printed nowhere
                heard += seconds
                if options.realtime:
                    await asyncio.sleep(began + heard - time.monotonic())
                await stream.receive(audio)
                bar.update(seconds)
            await stream.finish()
    finally:
        stream.close()
        await printer


def listen(settings: Settings, options: argparse.Namespace) -> int:
    return _with_engines(settings, partial(_listen, options=options))


async def _listen(pipeline: Pipeline, options: argparse.Namespace) -> int:
    from daemon.commands.terminal import Live, show_all
    from daemon.common.errors import ServiceError
    from daemon.core.pipeline import running
    from daemon.microphone.capture import MicrophoneError, find_device
    from daemon.microphone.source import Microphone
    from daemon.service.signals import stop_on_signals

    chosen = pipeline.settings.microphone
    if options.device is not None:
        device = int(options.device) if options.device.isdigit() else options.device
        chosen = chosen.model_copy(update={"device": device})
    try:
        find_device(chosen.device)  # before the models are loaded, which takes seconds
        async with running(pipeline) as model:
            microphone = Microphone(chosen, pipeline.metrics)
            stop_on_signals(microphone.stop)
            print(f"listening with {model.student}; press Ctrl-C to stop", file=sys.stderr)
            printer = asyncio.create_task(show_all(pipeline.hub.subscribe(), Live(sys.stdout).show))
            printer.add_done_callback(lambda _: microphone.stop())  # who cannot print has nobody to listen for
            try:
                await microphone.listen(pipeline.open_stream)
            finally:
                pipeline.hub.close()
                await printer
    except (MicrophoneError, ServiceError) as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    return OK


def devices(_: argparse.Namespace) -> int:
    from daemon.microphone.capture import MicrophoneError, input_devices

    try:
        found = input_devices()
    except MicrophoneError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    if not found:
        print(
            "whisperd: no device can record: plug one in, and check that its driver or sound server is running",
            file=sys.stderr,
        )
        return FAILED
    print("\n".join(found))
    return OK


def check(settings: Settings, options: argparse.Namespace) -> int:
    from daemon.commands import check as checks
    from daemon.engines.load import describe_models
    from daemon.microphone.capture import find_device, input_devices
    from daemon.settings.environment import service_environment
    from daemon.settings.load import find, unheeded
    from daemon.settings.secrets import home_assistant_token, mqtt_password, secret_files, with_tokens

    logging.disable(logging.CRITICAL)  # each answer is in the table
    environment, path = service_environment(), options.config or find()
    server, mqtt, house = settings.server, settings.mqtt, settings.home_assistant
    written = {"server.tokens": server.tokens, "mqtt.password": mqtt.password, "home_assistant.token": house.token}
    plain = [key for key, value in written.items() if value]
    probes = [
        checks.Probe("Python", checks.python),
        checks.Probe("configuration", lambda: checks.configuration(path, unheeded(mqtt, environment))),
        checks.Probe("secrets", lambda: checks.secrets(secret_files(settings), path, plain)),
        checks.Probe("state", lambda: checks.state(environment.state)),
        checks.Probe("address", lambda: checks.address(with_tokens(settings, environment).server)),
        checks.Probe("Wyoming", lambda: checks.wyoming(settings.wyoming)),
        *(
            checks.Probe(name, partial(checks.dialect, name, port, settings.server))
            for name, port in settings.dialects.ports.items()
        ),
        checks.Probe("TLS", lambda: checks.tls(server)),
        checks.Probe("MQTT", lambda: checks.broker(mqtt, mqtt_password(mqtt, environment))),
        checks.Probe(
            "Home Assistant",
            lambda: checks.house(house, home_assistant_token(house, environment)) if house.url else "off",
        ),
        *(
            checks.Probe(" ".join(dict.fromkeys(("microphone", each.source))), partial(find_device, each.device))
            for each in settings.all_microphones
        ),
    ]
    if not settings.all_microphones:
        probes.append(checks.Probe("microphone", partial(checks.no_microphone, input_devices)))
    if settings.engine.backend == "ray":  # devices and models are its machines'
        probes.append(checks.Probe("cluster", lambda: checks.cluster(settings)))
    else:
        probes.append(checks.Probe("device", lambda: checks.devices(settings.models)))
        probes.append(checks.Probe("models", lambda: describe_models(settings)))
    answers = []
    for answer in checks.ask(probes):
        answers.append(answer)
        if not options.json:
            print(checks.row(answer, probes), flush=True)
    if options.json:
        print(checks.as_json(answers))
    return OK if all(answer.fine for answer in answers) else FAILED


def install_service(options: argparse.Namespace) -> int:
    from daemon.commands import install

    paths = _install_paths(options)
    try:
        wanted = install.files(paths, install.program(), install.groups())
        # A packager's tree is for another machine.
        trouble = install.unseen() if options.root == Path("/") and not options.user else None
        if trouble is not None and not options.dry_run:
            raise install.InstallError(trouble)
        install.write(wanted, options.root, dry=options.dry_run, say=print)
        print(install.next_steps(paths, install.program()))
        trouble = trouble or _unguarded(paths, options.root)
        if trouble is not None:
            raise install.InstallError(trouble)
    except install.InstallError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    return OK


def _unguarded(paths: InstallPaths, root: Path) -> str | None:
    """Return why the service will not start with the settings that are there: the same judgement as its own."""
    from daemon.common.errors import ConfigurationError
    from daemon.common.permissions import exposed
    from daemon.settings.environment import ServiceEnvironment
    from daemon.settings.load import load
    from daemon.settings.secrets import with_tokens

    settings = root / paths.settings_file.relative_to("/")
    # The credential is handed over at the start; what is in it is root's secret.
    stores = (root / "etc" / name / "server_tokens" for name in ("credstore", "credstore.encrypted"))
    if not settings.is_file() or (not paths.user and any(map(os.path.exists, stores))):
        return None
    try:
        server = with_tokens(load(settings, {}), ServiceEnvironment()).server
    except ConfigurationError as error:
        return str(error)
    return exposed([server.host], server.tokens, open_to_all=server.open)


def uninstall_service(options: argparse.Namespace) -> int:
    from daemon.commands import install

    try:
        install.remove(_install_paths(options), options.root, dry=options.dry_run, say=print)
    except install.InstallError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    return OK


def _install_paths(options: argparse.Namespace) -> InstallPaths:
    from daemon.commands.install import InstallPaths
    from daemon.settings.environment import user_folder

    return InstallPaths.of(user_folder() if options.user else None)


def models(settings: Settings, options: argparse.Namespace) -> int:
    match options.verb:
        case "pull":
            return _pull(options.name)
        case "show":
            return _show(settings, options.name)
        case "import" | "export":
            return _convert(options)
    from daemon.commands import models as checkpoints

    directories = [*_configured(settings), *getattr(options, "directories", [])]
    print(checkpoints.listing(checkpoints.here(directories), checkpoints.this_machine()))
    return OK


def _configured(settings: Settings) -> list[str]:
    """Return the directories among the models that the settings name."""
    names = dict.fromkeys(name for name in (settings.models.student, settings.models.teacher) if name)
    return [name for name in names if Path(name).expanduser().is_dir()]


def _pull(name: str) -> int:
    from tqdm import tqdm

    from daemon.commands import pull
    from streaming.whisper.locate import is_hub_name, is_imported, is_shipped

    if is_shipped(name) or is_imported(name) or (name and Path(name).expanduser().is_dir()):
        print(f"{name} is already on this machine: there is nothing to fetch")
        return OK
    if not is_hub_name(name):
        print(f"whisperd: {name!r} is not a name on the model hub: use one like openai/whisper-small", file=sys.stderr)
        return BAD_USAGE
    try:
        listing = pull.look_up(name)
        with tqdm(
            total=listing.size, unit="B", unit_scale=True, desc=name, leave=False, disable=not sys.stderr.isatty()
        ) as bar:
            directory = pull.pull(listing, bar.update)
    except pull.PullError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    print(f"{name}: {len(listing.files)} files, {pull.megabytes(listing.size)}, each checked, in {directory}")
    return OK


def _convert(options: argparse.Namespace) -> int:
    from daemon.commands import import_models

    try:
        if options.verb == "import":
            print(import_models.bring(options.source, options.name, options.tokenizer, force=options.force))
        else:
            print(import_models.take_out(options.name, options.dtype, options.directory, force=options.force))
    except import_models.ImportFailed as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    return OK


def _show(settings: Settings, name: str) -> int:
    from daemon.commands import models as checkpoints
    from streaming.whisper.locate import CheckpointError

    found = checkpoints.here(_configured(settings))
    others = [each.name.partition(" (")[0] for each in found if not each.state]
    try:
        print(checkpoints.description(name, list(dict.fromkeys(others))))
    except CheckpointError as error:
        print(f"whisperd: {error}", file=sys.stderr)
        return FAILED
    return OK


def distill(arguments: Sequence[str]) -> int:
    from distillation.cli import main as distill_main

    return distill_main(arguments)


def bench(arguments: Sequence[str]) -> int:
    from bench.cli import main as bench_main

    return bench_main(arguments)


_WITHOUT_SETTINGS = {
    "devices": devices,
    "install-service": install_service,
    "uninstall-service": uninstall_service,
}
_COMMANDS = {"run": run, "transcribe": transcribe, "listen": listen, "check": check, "models": models}


if __name__ == "__main__":
    sys.exit(main())
