"""What the quickstart's reporter knows of a run, and keeps when it is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from journal import Journal

OLD, NEW = "9-0", "10-0"


def started(run: str = NEW, files: Sequence[str] = ("a", "b")) -> dict[str, Any]:
    return {"run": run, "event": "started", "root": "/somewhere", "files": list(files)}


def result(path: str, run: str = NEW) -> dict[str, Any]:
    return {"run": run, "path": path, "size": 1}


def finished(run: str = NEW) -> dict[str, Any]:
    return {"run": run, "event": "finished", "report": "report.md"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "run.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(path)) as opened:
        yield opened


def test_a_new_journal_knows_nothing(journal: Journal) -> None:
    assert not journal.complete
    assert not journal.root


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_run_is_complete_when_all_has_come_in_any_order(journal: Journal, order: tuple[int, ...]) -> None:
    records = [started(), result("a"), result("b")]
    for i in order:
        assert not journal.complete
        journal.add(records[i])
    assert journal.complete
    assert journal.root == "/somewhere"


def test_a_run_of_no_files_is_complete_at_once(journal: Journal) -> None:
    journal.add(started(files=()))
    assert journal.complete


def test_a_result_that_comes_twice_counts_once(journal: Journal, path: Path) -> None:
    journal.add(result("a"))
    before = path.read_bytes()
    journal.add(result("a") | {"size": 2})
    assert journal.results["a"]["size"] == 1
    assert path.read_bytes() == before


def test_everything_is_known_after_a_crash(journal: Journal, path: Path) -> None:
    for record in (started(), result("a"), result("b"), finished()):
        journal.add(record)
    with closing(Journal(path)) as again:
        assert again.complete
        assert again.finished
        assert again.results == journal.results


def test_half_a_line_is_left_out_and_written_again(journal: Journal, path: Path) -> None:
    journal.add(started())
    journal.add(result("a"))
    path.write_bytes(path.read_bytes()[:-7])
    with closing(Journal(path)) as again:
        assert not again.results
        again.add(result("a"))
        again.add(result("b"))
    with closing(Journal(path)) as third:
        assert third.complete


@pytest.mark.parametrize("first", [started(NEW), result("a", NEW)], ids=["event", "result"])
def test_a_newer_run_takes_the_place_of_an_older_one(
    journal: Journal, path: Path, first: dict[str, Any]
) -> None:
    for record in (started(OLD), result("a", OLD), result("b", OLD), finished(OLD)):
        journal.add(record)
    journal.add(first)
    assert journal.run == NEW
    assert not journal.complete
    assert not journal.finished
    with closing(Journal(path)) as again:
        assert (again.run, again.started, again.results) == (NEW, journal.started, journal.results)


def test_what_is_left_of_an_older_run_is_ignored(journal: Journal) -> None:
    journal.add(started(NEW))
    for record in (started(OLD), result("a", OLD), finished(OLD)):
        journal.add(record)
    assert journal.started == started(NEW)
    assert not journal.results
    assert not journal.finished


def test_two_that_note_at_the_same_time_know_what_the_other_one_has(journal: Journal, path: Path) -> None:
    with closing(Journal(path)) as other:
        journal.add(started())
        other.add(result("a"))
        assert not other.complete
        journal.add(result("b"))
        assert journal.complete


def test_a_run_that_one_of_two_begins_is_the_other_ones_too(journal: Journal, path: Path) -> None:
    with closing(Journal(path)) as other:
        journal.add(started(OLD))
        other.add(result("a"))
        journal.add(result("a", OLD))
        journal.add(started())
        other.add(result("b"))
        assert other.complete
        assert other.run == NEW
