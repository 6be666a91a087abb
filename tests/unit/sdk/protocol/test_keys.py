"""What the name of a consumer says, to the SDK, to the operator and to the functions on the server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.protocol.entry import Source, parse_entry
from agentstream.protocol.keys import (
    ConsumerProcess,
    consumer_name,
    parse_consumer,
    parse_process,
    parse_replay,
    replay_id,
)
from agentstream_operator.plan.observed import Gone

PODS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
PROCESSES = st.builds(
    ConsumerProcess,
    st.integers(0, 1 << 45),
    st.integers(1, 1 << 22),
    st.from_regex(r"[0-9a-f]{10}", fullmatch=True),
)


@given(PODS, PROCESSES)
def test_a_name_says_pod_and_process(pod: str, process: ConsumerProcess) -> None:
    name = consumer_name(pod, process)
    assert parse_consumer(name) == (pod, process.started)
    assert parse_process(name) == process


@given(PODS, PROCESSES, PROCESSES)
def test_processes_differ_in_their_names(pod: str, one: ConsumerProcess, other: ConsumerProcess) -> None:
    assert (consumer_name(pod, one) == consumer_name(pod, other)) == (one == other)


@pytest.mark.parametrize("name", ["", "pod", "pod.", "pod.?", "pod.1", "pod.1-x-place", "pod.-1-place"])
def test_other_names_tell_of_no_process(name: str) -> None:
    assert parse_process(name) is None


def test_the_start_is_written_in_base_36() -> None:
    assert consumer_name("pod", ConsumerProcess(0, 7, "there")) == "pod.0-7-there"
    assert consumer_name("a.pod", ConsumerProcess(36**3 + 35, 7, "there")) == "a.pod.100z-7-there"


def test_what_ended_is_told_by_the_start() -> None:
    name = consumer_name("pod", ConsumerProcess(1000, 7, "there"))
    assert [Gone("pod", before).covers(name) for before in (None, 1001, 1000)] == [True, True, False]
    assert not Gone("po").covers(name)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True), st.uuids())
def test_the_id_of_a_replay_tells_its_name(name: str, uid: object) -> None:
    assert parse_replay(replay_id(name, str(uid))) == name


HEADERS = (
    *(b'"again"', b'"again."', b'".01234567"', b'"again.0123456789"', b'"a.b.01234567"', b'"Again.01234567"'),
    *(b"null", b"7", b"[]", b'{"a":1}', b'"again.01234567\\n"', b'"%s.1"' % (b"x" * 10_000)),
)


@pytest.mark.parametrize("made_up", HEADERS, ids=lambda made_up: made_up[:20].decode())
def test_what_somebody_made_up_is_of_no_replay(made_up: bytes) -> None:
    header = b'{"origin":"1-0","attempts":2,"replay":%s}' % made_up
    entry = parse_entry(Source("k", retry=True), "5-0", [b"m", b"{}", b"x", header])
    assert (entry.replay, entry.earlier) == (None, 2)


def test_only_retries_are_of_a_replay() -> None:
    fields = [b"m", b"{}", b"x", b'{"replay":"again.01234567"}']
    assert parse_entry(Source("k", retry=True), "5-0", fields).replay == "again"
    assert parse_entry(Source("k", retry=False), "5-0", fields).replay is None
