"""What is computed about a file, and how alike two files are. Pure: content in, figures out.

Two texts are as similar as the share of runs of five words ("shingles") that they have in common. The
smallest hashes of a file's shingles, its sketch, are enough to estimate that share: the smallest of two
sketches together are a random sample of the shingles of both files (Broder 1997, On the resemblance and
containment of documents).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePath

SHINGLE = 5
"""Words of a shingle."""

SKETCH = 128
"""Hashes of a sketch: with so many the estimate is off by about 0.04."""

_WORD = re.compile(r"\w+")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$")
_MARKDOWN = "Markdown"


@dataclass(frozen=True, slots=True)
class Language:
    """What a file is written in.

    Attributes:
        name: for people.
        comment: what a line of comment begins with; empty where there are none.
    """

    name: str
    comment: str = ""


_LANGUAGES: Mapping[str, Language] = {
    ".c": Language("C", "//"),
    ".go": Language("Go", "//"),
    ".h": Language("C", "//"),
    ".java": Language("Java", "//"),
    ".js": Language("JavaScript", "//"),
    ".lua": Language("Lua", "--"),
    ".md": Language(_MARKDOWN),
    ".py": Language("Python", "#"),
    ".rs": Language("Rust", "//"),
    ".rst": Language("reStructuredText"),
    ".sh": Language("Shell", "#"),
    ".toml": Language("TOML", "#"),
    ".ts": Language("TypeScript", "//"),
    ".txt": Language("Text"),
    ".yaml": Language("YAML", "#"),
    ".yml": Language("YAML", "#"),
    "Dockerfile": Language("Dockerfile", "#"),
    "Makefile": Language("Make", "#"),
}


@dataclass(frozen=True, slots=True)
class Analysis:
    """What is known of one file.

    Attributes:
        path: where it is, relative to the root.
        language: name of its language.
        size: in bytes.
        lines: how many.
        words: how many.
        comments: lines that are comment only.
        code: lines that are neither blank nor comment; 0 for prose.
        headings: of a Markdown document, in their order.
        sketch: the smallest hashes of its shingles, ascending.
        problem: why it could not be read; empty if it could.
    """

    path: str
    language: str
    size: int = 0
    lines: int = 0
    words: int = 0
    comments: int = 0
    code: int = 0
    headings: Sequence[str] = ()
    sketch: Sequence[int] = ()
    problem: str = ""


def language_of(path: str) -> Language | None:
    """What a file is written in, by its name; None if we cannot tell."""
    name = PurePath(path)
    return _LANGUAGES.get(name.suffix) or _LANGUAGES.get(name.name)


def analyse(path: str, content: bytes) -> Analysis:
    """Computes everything about a file."""
    language = language_of(path) or Language("Text")
    text = content.decode("utf-8", errors="replace")
    lines = text.splitlines()
    words = _WORD.findall(text.lower())
    filled = [line.strip() for line in lines if line.strip()]
    comments = sum(line.startswith(language.comment) for line in filled) if language.comment else 0
    return Analysis(
        path=path,
        language=language.name,
        size=len(content),
        lines=len(lines),
        words=len(words),
        comments=comments,
        code=len(filled) - comments if language.comment else 0,
        headings=headings(lines) if language.name == _MARKDOWN else [],
        sketch=sketch(words),
    )


def headings(lines: Iterable[str]) -> list[str]:
    """The headings of a Markdown document; what looks like one in a fenced block is none."""
    found = []
    fence = ""
    for line in lines:
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif fence == mark[1]:
                fence = ""
        elif not fence and (heading := _HEADING.match(line)):
            found.append(heading[1])
    return found


def sketch(words: Sequence[str]) -> list[int]:
    """The smallest hashes of the shingles of a text, ascending; none if it is shorter than a shingle."""
    shingles = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
    return sorted({_hash(shingle) for shingle in shingles})[:SKETCH]


def similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of common shingles, 0 to 1, estimated from two sketches; exact for short texts."""
    sample = set(sorted({*one, *other})[:SKETCH])
    return len(sample.intersection(one).intersection(other)) / len(sample) if sample else 0.0


def near_duplicates(analyses: Iterable[Analysis], least: float = 0.3) -> list[tuple[float, str, str]]:
    """Pairs of files with at least this similarity, as (similarity, path, path), the most similar first."""
    files = {analysis.path: analysis.sketch for analysis in analyses}
    holders: dict[int, list[str]] = {}
    for path in sorted(files):
        for value in files[path]:
            holders.setdefault(value, []).append(path)
    # only files that share a hash can be similar at all
    pairs = {pair for paths in holders.values() for pair in combinations(paths, 2)}
    scored = ((similarity(files[one], files[other]), one, other) for one, other in pairs)
    return sorted((pair for pair in scored if pair[0] >= least), key=lambda pair: (-pair[0], pair[1:]))


def _hash(shingle: str) -> int:
    # six bytes: JSON readers keep whole numbers up to 2^53. Not hash(), which differs from process to process
    return int.from_bytes(hashlib.blake2b(shingle.encode(), digest_size=6).digest())
