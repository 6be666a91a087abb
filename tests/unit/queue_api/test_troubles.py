"""What is wrong comes first, with why and what to do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agentstream_operator.queue_api.documents import (
    ConditionItem,
    ConsumerCount,
    GroupNumbers,
    LagAnswer,
    ServerNumbers,
    StreamNumbers,
)
from agentstream_operator.queue_api.troubles import Severity, is_wrong, state, troubles
from agentstream_operator.resources.reasons import ConditionReason

AT = datetime(2026, 1, 1, tzinfo=UTC)
KNOWN: dict[str, Any] = {"namespace": "team", "known": True, "ready": True, "reason": "Ready"}


def group(**numbers: Any) -> GroupNumbers:
    return GroupNumbers(**{**KNOWN, "name": "coder", "stream": "tasks", "dead": 0, "backlog": 0, **numbers})


def stream(**numbers: Any) -> StreamNumbers:
    return StreamNumbers(**{**KNOWN, "name": "tasks", "key": "k", "admission": "Open", **numbers})


def lag(*found: GroupNumbers | StreamNumbers, **server: Any) -> LagAnswer:
    return LagAnswer(
        at=AT,
        server=ServerNumbers(**{"reachable": True, "used_memory": 5, "max_memory": 100, **server}),
        streams=tuple(each for each in found if isinstance(each, StreamNumbers)),
        groups=tuple(each for each in found if isinstance(each, GroupNumbers)),
    )


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert troubles(lag(stream(), group(backlog=9, pending=2), group(backlog=9))) == []


def condition(kind: str, status: str, reason: str) -> dict[str, Any]:
    item = ConditionItem.model_validate(
        {"type": kind, "status": status, "reason": reason, "message": "because", "since": AT}
    )
    return {"conditions": (item,)}


BROKEN = condition("Ready", "False", "R")
AWAY = condition("Ready", "False", "BackendUnavailable")


@pytest.mark.parametrize(
    ("found", "what", "severity"),
    [
        (lag(reachable=False, used_memory=None), "does not answer", Severity.BROKEN),
        (lag(used_memory=91), "almost out of memory", Severity.BROKEN),
        (lag(stream(admission="Closed", unsettled=7)), "full", Severity.BROKEN),
        (lag(stream(ready=False, reason="R", **BROKEN)), "R", Severity.BROKEN),
        (lag(group(ready=False, reason="R", **BROKEN)), "R", Severity.BROKEN),
        (
            lag(group(backlog=3, consumers=ConsumerCount(wanted=1, running=0))),
            "no consumer is ready",
            Severity.BROKEN,
        ),
        (lag(group(dead=1)), "1 dead letter", Severity.WARNING),
        (lag(group(**condition("Consuming", "False", "NoProgress"))), "NoProgress", Severity.BROKEN),
        (lag(group(**condition("MessagesLost", "True", "R"))), "R", Severity.BROKEN),
        (lag(stream(**condition("RetentionHealthy", "False", "R"))), "R", Severity.WARNING),
        (lag(stream(**condition("IdsInTheFuture", "True", "R"))), "R", Severity.WARNING),
        (
            # where the condition says why nobody consumes, the numbers need not say that nobody does
            lag(
                group(
                    backlog=3,
                    consumers=ConsumerCount(wanted=1, running=0),
                    **condition("Consuming", "False", "CrashLoop"),
                )
            ),
            "CrashLoop",
            Severity.BROKEN,
        ),
        (
            # one line, however many resources say the same
            lag(
                stream(ready=False, reason="BackendUnavailable", **AWAY),
                group(ready=False, reason="BackendUnavailable", **AWAY),
                reachable=False,
                used_memory=None,
            ),
            "does not answer",
            Severity.BROKEN,
        ),
    ],
)
def test_what_is_wrong_is_said_with_why_and_where(found: LagAnswer, what: str, severity: Severity) -> None:
    (one,) = troubles(found)
    assert one.what == what
    assert one.severity is severity
    assert one.page.startswith("/console")
    assert one.about
    assert one.why
    assert one.action


def test_what_is_healthy_chosen_or_unknown_is_no_trouble() -> None:
    for kind, status, reason in (
        ("Consuming", "True", "HandlersRunning"),
        ("Consuming", "False", "Suspended"),
        ("Consuming", "Unknown", "LagUnknown"),
        ("MessagesLost", "False", "NoneLost"),
        ("DeadLettering", "True", "DeadLetters"),
        ("OfTheFuture", "False", "R"),
    ):
        assert troubles(lag(group(**condition(kind, status, reason)))) == []


def test_a_group_that_is_suspended_misses_no_consumer() -> None:
    nobody = ConsumerCount(wanted=0, running=0)
    assert (
        troubles(lag(group(backlog=3, consumers=nobody, **condition("Consuming", "False", "Suspended"))))
        == []
    )


def test_a_full_stream_leads_to_the_group_that_is_furthest_behind() -> None:
    full = stream(
        admission="Closed", unsettled=7, **condition("RetentionHealthy", "False", "AdmissionClosed")
    )
    (one,) = troubles(lag(full, group(name="fast", backlog=1), group(name="slow", backlog=7)))
    assert "slow is furthest behind" in one.why
    assert one.page == "/console/groups/team/slow"
    assert one.action == ConditionReason.ADMISSION_CLOSED.action


def test_a_server_that_is_away_is_said_as_the_operator_has_it() -> None:
    away = condition("BackendReachable", "False", "BackendUnavailable")
    (one,) = troubles(lag(group(ready=False, reason="BackendUnavailable", **away), reachable=False))
    assert one.why == "because"


def test_the_worst_comes_first() -> None:
    found = troubles(lag(group(dead=5), stream(admission="Closed"), reachable=False, used_memory=None))
    assert [each.severity for each in found] == sorted(each.severity for each in found)
    assert found[-1].severity is Severity.WARNING


@pytest.mark.parametrize("reason", ConditionReason)
def test_a_reason_is_said_with_what_to_do_about_it(reason: ConditionReason) -> None:
    (one,) = troubles(lag(stream(ready=False, reason=reason, **condition("Ready", "False", reason))))
    assert (one.what, one.action) == (reason, reason.action)


def test_a_reason_of_another_version_is_said_all_the_same() -> None:
    (one,) = troubles(lag(stream(ready=False, reason="Sleepy")))
    assert one.what == "Sleepy"
    assert one.why
    assert "kubectl describe" in one.action


@pytest.mark.parametrize(
    ("found", "word", "wrong"),
    [
        (group(), "Ready", False),
        (group(ready=False, reason="R", **BROKEN), "R", True),
        (group(**condition("Consuming", "False", "NoProgress")), "NoProgress", True),
        (group(**condition("Consuming", "False", "Suspended")), "Suspended", False),
        (group(**condition("Consuming", "True", "HandlersRunning")), "HandlersRunning", False),
        (stream(**condition("RetentionHealthy", "False", "AdmissionClosed")), "AdmissionClosed", True),
    ],
)
def test_a_state_is_the_first_thing_that_is_not_as_it_should_be(
    found: GroupNumbers | StreamNumbers, word: str, *, wrong: bool
) -> None:
    assert (state(found), is_wrong(found)) == (word, wrong)
