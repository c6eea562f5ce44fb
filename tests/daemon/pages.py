"""The README and the pages under docs/, as a reader meets them: fenced blocks, with what is said before each.

An HTML comment on the line before a block says what a test could not know:

    <!-- not run: REASON -->                  it changes the machine, or needs what a test has not
    <!-- until: TEXT -->                      it runs until it is stopped, once it has printed TEXT
    <!-- fails: REASON -->                    its exit code is not 0, and that is meant
    <!-- output varies: REASON -->            what it prints is of that machine or moment
    <!-- output of the program above -->      what the `python` block before it prints
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

COMMANDS = ("sh", "bash", "console", "python")
_FENCE = re.compile(r"^```(\S*)$")
_COMMENT = re.compile(r"^<!-- (.*) -->$")
MARKS = re.compile(r"(not run|until|fails|output varies): (\S.*)|(output of the program above)")


@dataclass(frozen=True)
class Block:
    """mark: the word of the comment before it, "" for none; reason: what follows the word."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Each command, and what it is said to print; of `sh` the whole block at once."""
        if self.language != "console":
            return [(self.text, "")]
        parts = re.split(r"^\$ (.*)\n", self.text, flags=re.MULTILINE)
        assert not parts[0], f"{self.name}: a console block begins with a prompt"
        return list(zip(parts[1::2], parts[2::2], strict=True))


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if (fence := _FENCE.match(lines[at])) is None:
            at += 1
            continue
        end = lines.index("```", at + 1)
        comment = _COMMENT.match(lines[at - 1]) if at else None
        mark = MARKS.fullmatch(comment[1]) if comment else None
        words = (mark[1] or mark[3], mark[2] or "") if mark else ("", "")
        yield Block(page, at + 1, fence[1], "".join(f"{line}\n" for line in lines[at + 1 : end]), *words)
        at = end + 1


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def comments(page: Path) -> list[str]:
    """Those that stand before a block."""
    lines = page.read_text(encoding="utf-8").splitlines()
    before = [line for line, next in itertools.pairwise(lines) if _FENCE.match(next)]
    return [match[1] for line in before if (match := _COMMENT.match(line))]
