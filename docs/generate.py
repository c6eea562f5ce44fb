"""Writes the pages that follow from the code: `python docs/generate.py`.

`configuration.md` from the settings' model (types, defaults, limits), the list of what a reload takes over, and the
comments of `config/whisperd.yaml`, which are the one place where a key is explained. `metrics.md` from the declared
counters. The figures on the card of `tiny-en` from the report that lies beside it, once there is one. A test holds all
of it equal to what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daemon.common.metrics import Metrics
from daemon.settings.load import PREFIX
from daemon.settings.reloadable import reloadable
from daemon.settings.schema import Settings

DOCS = Path(__file__).parent
SHIPPED = DOCS.parent / "config" / "whisperd.yaml"
PAIR = DOCS.parent / "streaming" / "pretrained" / "tiny-en"

HEAD = f"""# Configuration

<!-- Written by docs/generate.py: change config/whisperd.yaml or daemon/settings/schema.py (for vad, segment, confidence
and the defaults of partials: the files in streaming/ that it names), and run it again. -->

whisperd reads one YAML file: `./whisperd.yaml`, or else `/etc/whisperd/whisperd.yaml`. `whisperd run -c FILE` reads
another file. [`config/whisperd.yaml`](../config/whisperd.yaml) has every key with its default: delete what you do not
change. An unknown key is an error, and the message suggests the nearest known one.

Environment variables override the file. `{PREFIX}SERVER__PORT=9000` sets `server.port`, with two underscores between
section and key. The value is read as YAML (`{PREFIX}SERVER__TOKENS='[a, b]'`), and text as it is. Variables that
Kubernetes and Docker set for a service of this name (`{PREFIX}SERVICE_HOST`) are ignored, and `whisperd check` lists
them.

Times are in seconds. *Reload*: `systemctl reload whisperd` (SIGHUP) applies a new value and drops no connection.
[systemd/README.md](../systemd/README.md#settings-that-change) says when each takes effect. All other keys need a
restart, and the log names them.
"""

METRICS = """# Metrics

<!-- Written by docs/generate.py: change daemon/common/metrics.py, and run it again. -->

`GET /metrics`, on the same port as everything else, has all metrics in Prometheus' text format. With tokens, it
requires one. No metric has a label for the source or the client, because clients choose those names.
[config/grafana.json](../config/grafana.json) is a dashboard, and [operations.md](operations.md#metrics) says what to
look at first.

| name | type | labels | meaning |
|---|---|---|---|
"""

PROCESS = """
The Prometheus library adds metrics of the process itself: `process_resident_memory_bytes`, `process_cpu_seconds_total`,
`process_open_fds`, `process_max_fds`, `process_start_time_seconds`.
"""


# --- the comments of the shipped file --------------------------------------------------------------------------------


def comments(text: str) -> dict[str, str]:
    """`server` or `server.port` -> what is said of it: above a section, beside and below a key."""
    found: dict[str, list[str]] = {}
    above: list[str] = []
    section = key = ""
    for line in text.splitlines():
        code, _, comment = _split(line)
        if not line.strip():
            above, key = [], ""
        elif match := re.match(r"(\w+):", code):
            section = key = match[1]
            found[section] = [*above, comment]
        elif match := re.match(r"  (\w+):", code):
            key = f"{section}.{match[1]}"
            found[key] = [comment]
        elif line.startswith("#"):
            above.append(comment)
        elif key:
            found[key].append(comment)
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}


def _split(line: str) -> tuple[str, str, str]:
    """Code, `#`, comment; a `#` inside of quotes or a value begins none."""
    match = re.match(r"""((?:[^#"']|"[^"]*"|'[^']*'|(?<=\S)#)*)(#?)\s?(.*)""", line)
    assert match is not None, "it matches everything"
    return match[1], match[2], match[3].strip()


# --- the model -------------------------------------------------------------------------------------------------------


def kind(schema: dict[str, Any]) -> str:
    """A value's type and limits, in words."""
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(kind(each) for each in schema["anyOf"]))
        return ("; or " if any("," in each for each in kinds) else " or ").join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`",
             "array": "list", "null": "`null`", "object": "section"}  # fmt: skip
    name = names[schema.get("type", "object")]
    return f"{name}, {limits}" if (limits := _limits(schema)) else name


def _limits(schema: dict[str, Any]) -> str:
    least, most, above = (schema.get(each) for each in ("minimum", "maximum", "exclusiveMinimum"))
    if least is not None and most is not None:
        return f"{least:g}..{most:g}"
    if least is not None:
        return f"{least:g} or more"
    return f"more than {above:g}" if above is not None else ""


def default(value: Any) -> str:
    """As YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[]" if not value else str(list(value))
    return str(value) if value != "" else '""'


def sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section, and the JSON schema of its keys; of several in one, those of one of them; none of a plain list."""
    schema = Settings.model_json_schema()
    for name, field in schema["properties"].items():
        inner = field.get("items") or field.get("additionalProperties") or {}
        reference = field.get("$ref") or inner.get("$ref")
        yield name, schema["$defs"][reference.rpartition("/")[2]]["properties"] if reference else {}


# --- the pages -------------------------------------------------------------------------------------------------------


def configuration() -> str:
    said, defaults = comments(SHIPPED.read_text(encoding="utf-8")), Settings().model_dump(mode="json")
    page = HEAD
    for name, keys in sections():
        page += f"\n## {name}\n\n{said[name]}\n"
        if not keys:
            page += f"\nThe default is `{default(defaults[name])}`. A reload applies a change.\n"
            continue
        page += "\n| key | type | default | reload | |\n|---|---|---|---|---|\n"
        for key, schema in keys.items():
            value = (
                defaults[name][key]
                if defaults[name] and isinstance(defaults[name], dict)
                else schema.get("default", "")
            )
            row = (
                f"`{key}`",
                kind(schema),
                f"`{default(value)}`",
                "yes" if reloadable(f"{name}.{key}") else "",
                said.get(f"{name}.{key}", ""),
            )
            page += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"
    return page


def metrics() -> str:
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {help} |\n"
        for name, kind, labels, help in sorted(Metrics().declared)
    ]
    return METRICS + "".join(rows) + PROCESS


def card() -> str:
    """The card as it is, with the figures of the report between its two marks; as it is where there is no report."""
    page = (PAIR / "README.md").read_text(encoding="utf-8")
    file = PAIR / "report.json"
    if not file.is_file():
        return page
    report = json.loads(file.read_text(encoding="utf-8"))
    before, begin, rest = page.partition("<!-- Written by docs/generate.py from report.json. -->\n")
    _, end, after = rest.partition("<!-- So far. -->\n")
    return f"{before}{begin}\n{words(report)}\n{threshold(report)}\n{speed(report)}\n{end}{after}"


def words(report: Mapping[str, Any]) -> str:
    """Word errors on each set, in %."""
    rows = [
        f"| {name.removeprefix('dev/')} | {row['clips']:,} | {row['words']:,} | {_percent(row['teacher'])} | "
        f"{_percent(row['student'])} | {_percent(row['cascade'])} | {_percent(row['asked'])} |\n"
        for name, row in report["sets"].items()
        if row
    ]
    head = "| word errors | clips | words | teacher | student | both, as the service runs them | teacher asked |\n"
    return f"{head}|---|---|---|---|---|---|---|\n{''.join(rows)}"


def threshold(report: Mapping[str, Any]) -> str:
    """What the default threshold costs and gains."""
    cascade = report["cascade"]
    chosen = {float(below): row for below, row in cascade["thresholds"].items()}[report["threshold"]]
    auroc = cascade["auroc_wrong"]
    told = "" if auroc is None else (
        " How sure it is tells the student's\nwrong texts from its right ones with an AUROC of "
        f"{auroc:.2f}."
    )  # fmt: skip
    return (
        f"The teacher is asked about texts of {report['shortest']:g} s or more (`escalate.shortest`) below a "
        f"confidence of {report['threshold']:g} (`escalate.below`). On {cascade['clips']:,} clips the "
        f"student alone makes {_percent(cascade['student'])} word errors,\nthe teacher alone "
        f"{_percent(cascade['teacher'])}, and at the threshold, with {_percent(chosen['asked'])} of the texts asked, "
        f"both make {_percent(chosen['cascade'])}.{told}\n"
    )


def speed(report: Mapping[str, Any]) -> str:
    """How much faster the student is, and the teacher with its drafts; texts that differ; words from noise."""
    pair, size = report["speculation"], report["size"]
    rows = [
        ("parameters, of which the student has its own",
         f"{size['student']['parameters'] / 1e6:.1f} M, {size['student']['own_parameters'] / 1e6:.1f} M"),
        *((f"student against its teacher, batch {batch}", f"{_spread(row['relative'])} times as fast")
          for batch, row in report["speed"].items()),
        *((f"student, then the teacher's check, against the teacher alone, batch {batch}",
           f"{_spread(pair[batch]['speed_up'])} times as fast") for batch in ("1", "16")),
        ("the teacher accepts of the student's tokens", _percent(pair["acceptance"])),
        ("texts checked by the teacher that differ from its own", f"{pair['differs']} of {pair['clips']:,}"),
    ]  # fmt: skip
    if noise := report.get("noise"):
        said = f"{noise['words']} in {noise['seconds'] / 60:.0f} minutes"
        rows.append(("words invented from noise, whole pipeline", said))
    return "| | measured |\n|---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


PAGES = {
    "configuration.md": configuration,
    "metrics.md": metrics,
    "../streaming/pretrained/tiny-en/README.md": card,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
