"""Which files the quickstart reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from files import find_files


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
