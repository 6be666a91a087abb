"""The report of a run as Markdown. Pure: what the analysts found in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from analysis import Analysis, near_duplicates


def render(run: str, root: str, analyses: Iterable[Analysis], analysts: Mapping[str, str]) -> str:
    """Writes the report.

    Args:
        run: the entry id of the event that started the run.
        root: the directory that was read.
        analyses: one of each file.
        analysts: which process analysed which path.
    """
    every = sorted(analyses, key=lambda a: (-a.size, a.path))
    read = [a for a in every if not a.problem]
    started = datetime.fromtimestamp(int(run.partition("-")[0]) / 1000, UTC)
    sections = [
        f"# What is in {_code(root)}",
        f"Run {run} of {started:%Y-%m-%d %H:%M:%S} UTC: {_totals(every)}.",
        *_section(
            "Comments by language", ("language", "files", "code", "comment", "share"), _languages(read)
        ),
        *_section("Similar files", ("similarity", "file", "file"), _duplicates(read)),
        *_section("Who did the work", ("process", "files"), _work(analysts)),
        *_section("Documents", ("document", "title", "headings"), _documents(read)),
        *_section("Files by size", ("file", "language", "bytes", "lines", "words"), _files(read)),
        *_section(
            "Could not be read",
            ("file", "why"),
            ((_code(a.path), _plain(a.problem)) for a in every if a.problem),
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _totals(analyses: Sequence[Analysis]) -> str:
    size, lines, words = (sum(getattr(a, name) for a in analyses) for name in ("size", "lines", "words"))
    return f"{len(analyses)} files, {size:,} bytes, {lines:,} lines, {words:,} words"


def _languages(analyses: Sequence[Analysis]) -> Iterable[tuple[object, ...]]:
    files, code, comments = Counter[str](), Counter[str](), Counter[str]()
    for a in analyses:
        files[a.language] += 1
        code[a.language] += a.code
        comments[a.language] += a.comments
    for language in sorted(files):
        if total := code[language] + comments[language]:
            share = f"{comments[language] / total:.0%}"
            yield language, files[language], f"{code[language]:,}", f"{comments[language]:,}", share


def _duplicates(analyses: Sequence[Analysis]) -> Iterable[tuple[object, ...]]:
    return ((f"{share:.0%}", _code(one), _code(other)) for share, one, other in near_duplicates(analyses))


def _work(analysts: Mapping[str, str]) -> Iterable[tuple[object, ...]]:
    return sorted(Counter(analysts.values()).items())


def _documents(analyses: Sequence[Analysis]) -> Iterable[tuple[object, ...]]:
    documents = sorted((a.path, a.headings) for a in analyses if a.headings)
    return ((_code(path), _plain(headings[0]), len(headings)) for path, headings in documents)


def _files(analyses: Sequence[Analysis]) -> Iterable[tuple[object, ...]]:
    return ((_code(a.path), a.language, f"{a.size:,}", f"{a.lines:,}", f"{a.words:,}") for a in analyses)


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> tuple[str, ...]:
    """A title and its table; nothing where there is nothing to show."""
    table = [_row(row) for row in rows]
    if not table:
        return ()
    return f"## {title}", "\n".join((_row(columns), _row(["---"] * len(columns)), *table))


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _code(text: str) -> str:
    """The text as it is, in a cell."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text).replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _plain(text: str) -> str:
    """The text in a cell, whatever Markdown would make of it."""
    return "".join(f"\\{char}" if char in "\\`*_<>[]|" else char for char in text)
