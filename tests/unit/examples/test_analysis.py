"""Which files the quickstart reads, and what its analysts compute."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from analysis import (
    SHINGLE,
    SKETCH,
    Analysis,
    analyse,
    headings,
    language_of,
    near_duplicates,
    similarity,
    sketch,
)
from files import find_files
from hypothesis import given
from hypothesis import strategies as st

texts = st.lists(st.sampled_from("abcdefgh"), max_size=60)


def words(number: int, seed: int) -> list[str]:
    return [str(n) for n in random.Random(seed).choices(range(1_000_000), k=number)]


def test_a_program_is_measured() -> None:
    content = b"# What it does.\nimport os\n\n  # why\nprint('\xc3\xa4rger')  # not counted\n"
    found = analyse("src/go.py", content)
    assert found == Analysis(
        path="src/go.py",
        language="Python",
        size=len(content),
        lines=5,
        words=10,
        comments=2,
        code=2,
        headings=[],
        sketch=sketch(["what", "it", "does", "import", "os", "why", "print", "ärger", "not", "counted"]),
    )


def test_prose_has_neither_code_nor_comments() -> None:
    found = analyse("README.md", b"# Title\n\nSome words.\n")
    assert (found.language, found.code, found.comments, found.headings) == ("Markdown", 0, 0, ["Title"])


def test_only_markdown_has_headings() -> None:
    assert not analyse("a.py", b"# Title\n").headings


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.py", "Python"),
        ("a.b/Makefile", "Make"),
        ("x.lua", "Lua"),
        ("a.tar.md", "Markdown"),
        ("picture.png", None),
        ("py", None),
    ],
)
def test_the_language_follows_from_the_name(path: str, name: str | None) -> None:
    language = language_of(path)
    assert (language and language.name) == name


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# One", "One"),
        ("###### Six ######", "Six"),
        ("   ## Indented a little", "Indented a little"),
        ("#\ttab", "tab"),
        ("# C#", "C"),
        ("####### Seven", None),
        ("    # Code", None),
        ("#hashtag", None),
        ("text # text", None),
    ],
)
def test_a_heading_is_told_from_other_lines(line: str, heading: str | None) -> None:
    assert headings([line]) == ([heading] if heading is not None else [])


@pytest.mark.parametrize("fence", ["```", "~~~"])
def test_what_is_fenced_holds_no_headings(fence: str) -> None:
    other = "~~~" if fence == "```" else "```"
    lines = ["# A", f"{fence}sh", "# a comment", other, "# another", fence, "# B"]
    assert headings(lines) == ["A", "B"]


@given(st.binary(max_size=300))
def test_any_content_can_be_analysed(content: bytes) -> None:
    found = analyse("any.py", content)
    assert found.size == len(content)
    assert found.code + found.comments <= found.lines


@given(texts)
def test_a_text_resembles_itself_unless_it_is_shorter_than_a_shingle(text: list[str]) -> None:
    assert similarity(sketch(text), sketch(text)) == (1.0 if len(text) >= SHINGLE else 0.0)


@given(texts, texts)
def test_similarity_is_symmetric_and_exact_for_short_texts(one: list[str], other: list[str]) -> None:
    def shingles(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + SHINGLE]) for i in range(len(text) - SHINGLE + 1)}

    first, second = shingles(one), shingles(other)
    share = len(first & second) / len(first | second) if first | second else 0.0
    assert similarity(sketch(one), sketch(other)) == similarity(sketch(other), sketch(one)) == share


@pytest.mark.parametrize("common", [500, 1000, 1500])
def test_similarity_of_long_texts_is_estimated_closely(common: int) -> None:
    shared = words(common, seed=1)
    one, other = shared + words(1000, seed=2), shared + words(1000, seed=3)
    assert similarity(sketch(one), sketch(other)) == pytest.approx(common / (common + 2000), abs=0.12)


def test_a_sketch_is_bounded_sorted_and_fits_into_json() -> None:
    values = sketch(words(5000, seed=4))
    assert len(values) == SKETCH
    assert values == sorted(set(values))
    assert values[-1] < 2**53


def test_near_duplicates_come_once_per_pair_the_most_similar_first() -> None:
    text = words(100, seed=5)
    files = [
        Analysis("b", "Text", sketch=sketch(text)),
        Analysis("a", "Text", sketch=sketch(text)),
        Analysis("c", "Text", sketch=sketch(text[:80])),
        Analysis("unlike", "Text", sketch=sketch(words(100, seed=6))),
        Analysis("empty", "Text"),
        Analysis("also empty", "Text"),
    ]
    found = near_duplicates(files)
    assert [pair[1:] for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0][0] == 1.0
    assert found[1][0] == found[2][0] == pytest.approx(76 / 96)


def test_what_is_less_similar_than_asked_for_is_left_out() -> None:
    text = words(100, seed=7)
    files = [Analysis("a", "Text", sketch=sketch(text)), Analysis("b", "Text", sketch=sketch(text[:50]))]
    assert not near_duplicates(files, least=0.5)
    assert near_duplicates(files, least=0.4)


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def found(root: Path) -> list[str]:
    return find_files(root, but=root / "report.md")


def test_files_that_can_be_read_are_found_in_order(tmp_path: Path) -> None:
    make(tmp_path, "b/x.md", "a.py", "b/Makefile", "b/c/d.lua", "picture.png")
    assert found(tmp_path) == ["a.py", "b/Makefile", "b/x.md", "b/c/d.lua"]


def test_the_report_is_no_part_of_the_next_one(tmp_path: Path) -> None:
    make(tmp_path, "report.md", "below/report.md")
    assert found(tmp_path) == ["below/report.md"]


@pytest.mark.parametrize("folder", [".venv", "__pycache__", "a/node_modules"])
def test_what_tools_made_is_left_out(tmp_path: Path, folder: str) -> None:
    make(tmp_path, f"{folder}/deep/x.py")
    assert not found(tmp_path)


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    assert not found(tmp_path)


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/\xff.py")).touch()
    except OSError:
        pytest.skip("this file system takes no such names")
    assert not found(tmp_path)


def test_a_directory_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert not found(tmp_path / "nowhere")
