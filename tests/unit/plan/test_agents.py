"""Which agents there are, and what is to be written for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from agentstream.protocol.routes import Consumes, Produces, decode_route
from agentstream_operator.plan.access import AgentUse, set_user
from agentstream_operator.plan.actions import DeleteRoute, DeleteUser, SetRoute, SetUser
from agentstream_operator.plan.agents import (
    GRACE,
    AgentInput,
    AgentName,
    Written,
    agents_of,
    plan_agent,
    plan_removal,
    rotate,
    route_of,
    strays,
    use_of,
)
from agentstream_operator.plan.observed import UserSeen
from agentstream_operator.resources.status import ConditionReason
from support.resources import a_group, a_stream

CODER = AgentName("team", "coder")
USE = use_of(CODER, [(a_stream("out"), ())], [(a_group(), a_stream())], {})
ROUTE = route_of(USE, None)
OTHER = UserSeen("other", frozenset({"hash"}))
PRINT = UserSeen("print", frozenset({"hash"}))
WRITTEN = Written(USE, ("hash",), PRINT, ROUTE)
IN_PLACE = AgentInput("ours", USE, ("hash",), written=WRITTEN, live=PRINT, route=ROUTE)
ROUTES = "agentstream:ours:team:routes"


def test_producers_and_the_groups_agent_are_agents() -> None:
    assert agents_of(a_stream(producers=["a", "b"])) == (AgentName("team", "a"), AgentName("team", "b"))
    assert agents_of(a_group()) == (CODER,)
    assert agents_of(a_group(agent="other")) == (AgentName("team", "other"),)


def test_a_use_has_the_policy_of_each_group_sorted() -> None:
    group = a_group(
        deliver="All",
        delivery={
            "lease": "5s",
            "maxDeliveries": 3,
            "backoff": {"initial": "2s", "factor": 3.0, "max": "1m"},
        },
        deadLetter={"enabled": False},
    )
    produces = [(a_stream("b", broadcast=True), ("y", "x")), (a_stream("a"), ("z",))]
    use = use_of(CODER, produces, [(group, a_stream(broadcast=True))], {"tasks": "1f", "b": "2e"})
    assert use == AgentUse(
        "team",
        "coder",
        (
            Produces("a", "{team.a}"),
            Produces("b", "{team.b}", broadcast=True, groups=("x", "y"), contracts="2e"),
        ),
        (
            Consumes(
                "tasks",
                "{team.tasks}",
                "coder",
                broadcast=True,
                contracts="1f",
                deliver_all=True,
                lease=5_000,
                max_deliveries=3,
                backoff_initial=2_000,
                backoff_factor=3.0,
                backoff_max=60_000,
                dead_letters=False,
            ),
        ),
    )


def test_what_is_in_place_needs_nothing() -> None:
    assert plan_agent(IN_PLACE).actions == ()


def test_a_new_agent_gets_user_and_then_route() -> None:
    plan = plan_agent(AgentInput("ours", USE, ("hash",)))
    assert plan.actions == (set_user(USE, "ours", ("hash",)), SetRoute(ROUTES, "coder", ROUTE))
    assert plan.events == ()
    assert [c.group for c in decode_route(ROUTE).consumes] == ["coder"]


def test_a_user_that_vanished_or_was_changed_is_put_right_and_that_is_told() -> None:
    for live, what in ((None, "was missing"), (OTHER, "had been changed")):
        plan = plan_agent(replace(IN_PLACE, live=live))
        assert plan.actions == (set_user(USE, "ours", ("hash",)),)
        assert [event.reason for event in plan.events] == [ConditionReason.CREDENTIALS_RESTORED]
        assert what in plan.events[0].message


def test_a_new_password_or_use_is_written() -> None:
    assert plan_agent(replace(IN_PLACE, password_hashes=("new",))).actions == (
        set_user(USE, "ours", ("new",), disconnect=True),
    )
    less = use_of(CODER, [], [], {})
    assert plan_agent(replace(IN_PLACE, use=less)).actions == (
        set_user(less, "ours", ("hash",)),
        SetRoute(ROUTES, "coder", route_of(less, None)),
    )


LESS = replace(USE, consumes=(msgspec.structs.replace(USE.consumes[0], signatures="Off"),))
STRICT = replace(USE, consumes=(msgspec.structs.replace(USE.consumes[0], signatures="Require"),))


@pytest.mark.parametrize(
    ("live", "what"),
    [
        (None, "it was missing"),
        (b"{}", "it had been changed (out: entry, tasks: entry)"),
        (route_of(LESS, None), "it had been changed (tasks: signatures)"),
        (route_of(STRICT, None)[:-3] + b"\x1b[2J", "it had become unreadable"),
        (b"[" * 100_000, "it had become unreadable"),
        (route_of(STRICT, None) + b" ", "it had been changed (its form)"),
        (
            route_of(STRICT, None).replace(b'"stream":"tasks"', b'"stream":"\\u001b\\n"'),
            "it had been changed (other streams, tasks: entry)",
        ),
    ],
)
def test_a_route_that_somebody_changed_is_restored_and_it_is_told_what_had_changed(
    live: bytes | None, what: str
) -> None:
    encoded = route_of(STRICT, None)
    written = replace(WRITTEN, use=STRICT, route=encoded)
    given = replace(IN_PLACE, use=STRICT, written=written, route=live, placed=encoded)
    plan = plan_agent(given)
    assert plan.actions == (SetRoute(ROUTES, "coder", encoded),)
    (event,) = plan.events
    assert event.reason is ConditionReason.ROUTE_RESTORED
    assert event.warning
    assert event.message == f"restored the route of coder: {what} on the server"
    assert plan_agent(replace(given, route=encoded)).events == ()


def test_a_route_that_this_process_never_wrote_or_has_yet_to_write_tells_of_nobody() -> None:
    assert plan_agent(replace(IN_PLACE, route=b"{}", placed=None)).events == ()
    assert plan_agent(replace(IN_PLACE, use=STRICT, placed=ROUTE)).events == ()


def test_a_former_password_is_valid_for_a_while_and_then_ends_with_its_connections() -> None:
    first = rotate(None, "a", 0.0, revoked=False)
    assert first.valid == ("a",)
    assert rotate(first, "a", 9.0, revoked=False) == first
    both = rotate(first, "b", 10.0, revoked=False)
    assert both.valid == ("b", "a")
    assert rotate(both, "b", 10.0 + GRACE - 1, revoked=False) == both
    assert rotate(both, "b", 10.0 + GRACE, revoked=False).valid == ("b",)
    # another rotation ends the first one's
    assert rotate(both, "c", 11.0, revoked=False).valid == ("c", "b")
    # one that leaked ends now
    assert rotate(first, "b", 10.0, revoked=True).valid == ("b",)


def test_connections_are_closed_when_a_password_of_the_live_user_ends_and_only_then() -> None:
    def disconnects(**given: Any) -> list[bool]:
        plan = plan_agent(replace(IN_PLACE, **given))
        return [action.disconnect for action in plan.actions if isinstance(action, SetUser)]

    assert disconnects(password_hashes=("new", "hash")) == [False]
    assert disconnects(password_hashes=("new",)) == [True]
    # also after a restart, or where somebody else has added a password
    assert disconnects(password_hashes=("new",), written=None) == [True]
    assert disconnects(live=UserSeen("other", frozenset({"hash", "added"}))) == [True]
    assert disconnects(written=None) == [False]
    assert disconnects(live=None) == [False]
    # the server did not answer when it was to close them
    closed = UserSeen("print", frozenset({"new"}))
    assert disconnects(password_hashes=("new",), live=closed, unclosed=True) == [True]


def test_a_rotation_is_told() -> None:
    begun = plan_agent(replace(IN_PLACE, password_hashes=("new", "hash"))).events
    ended = plan_agent(replace(IN_PLACE, password_hashes=("new",))).events
    assert [e.reason for e in (*begun, *ended)] == [ConditionReason.CREDENTIALS_ROTATED] * 2
    assert "the former one ends in 300 s" in begun[0].message
    assert "has ended, and its connections were closed" in ended[0].message


def test_a_lost_route_is_written_again() -> None:
    assert plan_agent(replace(IN_PLACE, route=None)).actions == (SetRoute(ROUTES, "coder", ROUTE),)


def test_until_everything_is_listed_only_what_is_missing_is_written() -> None:
    unknown = AgentInput("ours", USE, ("hash",), live=PRINT, route=b"{}", complete=False)
    assert plan_agent(unknown).actions == ()
    assert len(plan_agent(replace(unknown, live=None, route=None)).actions) == 2


def test_what_nobody_names_is_removed_as_far_as_it_is_there() -> None:
    assert plan_removal(CODER, "ours", live=None, route=None) == ()
    assert plan_removal(CODER, "ours", live=PRINT, route=b"{}") == (
        DeleteRoute(ROUTES, "coder"),
        DeleteUser("ours.team.coder"),
    )


def test_strays_are_users_of_ours_that_nobody_names_in_namespaces_that_are_known() -> None:
    users = ["ours.team.coder", "ours.team.ghost", "ours.far.ghost", "ours.torn.ghost", "our.s.team.ghost"]
    assert strays(users, "ours", {CODER}, None, {"torn"}) == [
        AgentName("team", "ghost"),
        AgentName("far", "ghost"),
    ]
    assert strays(users, "ours", {CODER}, {"team"}, set()) == [AgentName("team", "ghost")]
