"""The pages that follow from the code are those that the code writes now, and say all of it."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.settings.schema import Settings

DOCS = Path(__file__).parent.parent.parent / "docs"


def _generate() -> Any:
    spec = spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generate()


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_page_is_as_the_code_writes_it(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == generate.PAGES[name](), f"docs/{name} is out of date: make docs"


def test_the_cards_figures_are_those_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PAIR", tmp_path)
    marks = ("<!-- Written by docs/generate.py from report.json. -->\n", "<!-- So far. -->\n")
    (tmp_path / "README.md").write_text(f"# x\n{marks[0]}what was\n{marks[1]}rest\n")
    assert generate.card() == (tmp_path / "README.md").read_text()  # without a report it is as it is
    shares = {"teacher": 0.05, "student": 0.061, "cascade": 0.052, "asked": 0.1}
    ratio = {"median": 2.0, "least": 1.5, "most": 2.5}
    report = {
        "threshold": 0.85,
        "shortest": 2.0,
        "sets": {"dev/read": {"clips": 1600, "words": 9000, **shares}, "dev/empty": {}},
        "cascade": {
            "clips": 1600, **shares, "thresholds": {"0.0": shares, "0.85": shares, "inf": shares},
            "auroc_wrong": 0.912,
        },
        "size": {"student": {"parameters": 37.8e6, "own_parameters": 17e6}},
        "speed": {"1": {"relative": ratio}},
        "speculation": {"1": {"speed_up": ratio}, "16": {"speed_up": ratio}}
        | {"acceptance": 0.9, "differs": 0, "clips": 9},
        "noise": {"seconds": 1800, "words": 3},
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    page = generate.card()
    assert page.startswith(f"# x\n{marks[0]}")
    assert page.endswith(f"{marks[1]}rest\n")
    assert "what was" not in page
    assert "| read | 1,600 | 9,000 | 5.0 % | 6.1 % | 5.2 % | 10.0 % |" in page
    assert "AUROC of 0.91" in page
    assert "2.00 (1.50 to 2.50) times as fast" in page
    assert "| words invented from noise, whole pipeline | 3 in 30 minutes |" in page


def test_every_key_has_a_row() -> None:
    page = generate.configuration()
    for name, value in Settings().model_dump().items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        several = {
            "microphones": ["device", "source", "language", "buffer"],
            "sources": ["vocabulary", "hangover", "longest", "onset"],
            "vocabulary": [],
        }
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == several.get(name, list(value))
    assert all(line.count(" | ") == 4 for line in page.splitlines() if line.startswith("| `"))


def test_a_row_says_type_limits_default_and_whether_it_may_change() -> None:
    page = generate.configuration()
    rows = {
        "server": "| `max_streams` | whole number, 1 or more | `32` | yes | streams at once; the next is told",
        "models": "| `threads` | whole number, 1 or more; or `null` | `null` |  | CPU threads of the models",
        "mqtt": "| `keepalive` | whole number, 2 or more | `15` |  | a silent broker",
        "log": "| `format` | `text`, `json` | `text` | yes | text: for people",
    }
    for section, row in rows.items():
        assert f"\n{row}" in page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]


def test_comments_are_those_of_the_key_they_stand_at() -> None:
    said = generate.comments(
        "# The file's own.\n\n# Of the section,\n# in two lines.\nserver:\n"
        "  host: x  # beside\n           # and below\n"
        '  key: "a # b"\n  other: 1 # last\n\n# More.\nlist: []\n'
    )
    assert said == {
        "server": "Of the section, in two lines.",
        "server.host": "beside and below",
        "server.key": "",
        "server.other": "last",
        "list": "More.",
    }


def test_the_comments_are_found_of_every_section() -> None:
    said = generate.comments(generate.SHIPPED.read_text(encoding="utf-8"))
    shipped = yaml.safe_load(generate.SHIPPED.read_text(encoding="utf-8"))
    assert said.keys() >= shipped.keys()
    # What its name says, or the line above it.
    silent = {key for key, text in said.items() if not text}
    assert len(silent) < len(said) / 8, silent
