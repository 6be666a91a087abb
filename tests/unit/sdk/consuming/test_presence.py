"""Whether the process behind a name lives is asked of the kernel; else it is not known."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentstream.consuming.presence import Presence, this_place
from agentstream.protocol.keys import ConsumerProcess, consumer_name, parse_process

APPEARS = (
    "from agentstream.consuming.presence import Presence; p = Presence('pod'); print(p.name, flush=True)"
)
WAITS = "input()"
LEAVES_A_CHILD = "import os; os._exit(0) if os.fork() else (print('child', flush=True), input())"


@contextlib.contextmanager
def process(*lines: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of another program, and the name of its consumer."""
    started = subprocess.Popen(
        [sys.executable, "-c", "\n".join((APPEARS, *lines))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    with started:
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.fixture
def here() -> Iterator[Presence]:
    presence = Presence("pod")
    assert presence.name
    yield presence
    presence.close()


def test_names_of_one_moment_differ() -> None:
    made = [Presence("pod") for _ in range(50)]
    assert len({presence.name for presence in made}) == 50
    assert all(presence.name == presence.name for presence in made)
    for presence in made:
        presence.close()


def test_who_lives_has_not_ended_and_who_was_killed_has_at_once(here: Presence) -> None:
    with process(WAITS) as (other, name):
        assert here.has_ended(name) is False
        other.send_signal(signal.SIGSTOP)
        assert here.has_ended(name) is False
        other.kill()
        other.wait()
        assert here.has_ended(name) is True


def test_a_child_does_not_outlive_its_parent_under_its_name(here: Presence) -> None:
    with process(LEAVES_A_CHILD) as (parent, name):
        assert parent.wait() == 0
        assert parent.stdout is not None
        assert parent.stdout.readline() == "child\n"
        assert here.has_ended(name) is True


def test_a_consumer_that_was_closed_has_ended_although_its_process_has_not(here: Presence) -> None:
    other = Presence("pod")
    assert here.has_ended(other.name) is False
    other.close()
    assert here.has_ended(other.name) is True


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_what_is_elsewhere_is_not_known(here: Presence, place: str | None) -> None:
    elsewhere = Presence("pod", lambda: place)
    assert here.has_ended(elsewhere.name) is None
    assert elsewhere.has_ended(here.name) is None
    elsewhere.close()
    assert here.has_ended(elsewhere.name) is None


@pytest.mark.parametrize("name", ["pod.1", "pod", "pod.x-1-2", f"pod.1-{'9' * 400}-{this_place()}"])
def test_names_that_say_nothing_prove_nothing(here: Presence, name: str) -> None:
    assert here.has_ended(name) is None


def test_without_such_sockets_names_differ_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    one, other = Presence("pod"), Presence("pod")
    assert one.name != other.name
    assert one.has_ended(other.name) is None


def test_of_a_pod_the_ended_are_predecessors_and_the_first_that_lives_is_told_once(
    here: Presence, caplog: pytest.LogCaptureFixture
) -> None:
    ended = consumer_name("pod", ConsumerProcess(1, 1, this_place() or ""))
    others = consumer_name("pod.other", ConsumerProcess(1, 1, this_place() or ""))
    with (
        process(WAITS) as (other, live),
        process(WAITS) as (_, another),
        contextlib.closing(Presence("pod")) as same,
    ):
        names = [here.name, live, ended, others, another, "pod.old", same.name]
        assert [here.predecessors(names) for _ in range(2)] == [[ended]] * 2
        told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert f"another process ({other.pid})" in told[0].getMessage()
    assert parse_process(live).id == other.pid
