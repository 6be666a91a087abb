"""Routes decide where a message goes, come back as written, and errors say what is declared."""

from __future__ import annotations

import pytest

from agentstream.errors import NoConsumerGroup, NoRoute, ProtocolError
from agentstream.protocol.routes import Consumes, Produces, Route, decode_route, encode_route
from agentstream.routing.choose import consumed_group, target

TASKS, NEWS, AUDIT = (
    Produces("tasks", "{t}"),
    Produces("news", "{n}", broadcast=True),
    Produces("audit", "{a}"),
)
PLANNER = Route(produces=(AUDIT, NEWS, TASKS))
CODER = Route(consumes=(Consumes("news", "{n}", "coder", broadcast=True), Consumes("tasks", "{t}", "coder")))


def test_a_message_goes_to_the_stream_that_its_addressee_reads() -> None:
    assert target("planner", PLANNER, "coder", CODER, None) == TASKS


def test_a_broadcast_stream_leads_to_an_addressee_that_reads_nothing_else() -> None:
    listener = Route(consumes=(Consumes("news", "{n}", "listener", broadcast=True),))
    assert target("planner", PLANNER, "listener", listener, None) == NEWS


def test_a_stream_that_is_asked_for_is_taken() -> None:
    assert target("planner", PLANNER, "coder", CODER, "news") == NEWS


def test_a_broadcast_goes_to_the_broadcast_stream() -> None:
    assert target("planner", PLANNER, "broadcast", None, None) == NEWS


def test_a_stream_alone_means_all_its_groups() -> None:
    assert target("planner", PLANNER, "broadcast", None, "audit") == AUDIT


@pytest.mark.parametrize(
    ("own", "to", "other", "stream", "says"),
    [
        (None, "coder", CODER, None, "planner produces to no stream"),
        (
            PLANNER,
            "coder",
            CODER,
            "results",
            "does not produce to results; it produces to audit, news, tasks",
        ),
        (PLANNER, "coder", None, None, "no group of coder reads .* audit, news, tasks; it consumes nothing"),
        (PLANNER, "coder", CODER, "audit", "no group of coder reads on audit; it consumes news, tasks"),
        (Route(produces=(TASKS,)), "broadcast", None, None, "no broadcast stream; it produces to tasks"),
        (
            Route(produces=(TASKS, Produces("more", "{m}"))),
            "coder",
            Route(consumes=(*CODER.consumes, Consumes("more", "{m}", "coder"))),
            None,
            "several streams lead to coder: tasks, more; name one with stream=",
        ),
    ],
)
def test_where_nothing_leads_the_error_says_what_is_declared(
    own: Route | None, to: str, other: Route | None, stream: str | None, says: str
) -> None:
    with pytest.raises(NoRoute, match=says):
        target("planner", own, to, other, stream)


def test_the_group_of_a_stream_is_found() -> None:
    assert consumed_group("coder", CODER, "tasks", None).group == "coder"


@pytest.mark.parametrize(
    ("own", "stream", "group", "says"),
    [
        (None, "tasks", None, "coder consumes no group of tasks; it consumes nothing"),
        (CODER, "results", None, r"it consumes news \(group coder\), tasks \(group coder\)"),
        (CODER, "tasks", "shadow", "coder does not consume group shadow of tasks"),
        (
            Route(consumes=(Consumes("tasks", "{t}", "a"), Consumes("tasks", "{t}", "b"))),
            "tasks",
            None,
            "several groups of tasks: a, b; name one with group=",
        ),
    ],
)
def test_where_no_group_is_read_the_error_says_what_is_declared(
    own: Route | None, stream: str, group: str | None, says: str
) -> None:
    with pytest.raises(NoConsumerGroup, match=says):
        consumed_group("coder", own, stream, group)


def test_a_route_comes_back_as_it_was_written() -> None:
    route = Route((Produces("news", "{n}", broadcast=True),), (Consumes("tasks", "{t}", "coder", lease=1),))
    assert decode_route(encode_route(route)) == route


def test_what_a_later_release_adds_is_ignored() -> None:
    assert decode_route(b'{"produces":[{"stream":"a","key":"b","later":1}]}').produces == (
        Produces("a", "b"),
    )


def test_what_is_no_route_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="not a route"):
        decode_route(b'{"produces":[{}]}')
