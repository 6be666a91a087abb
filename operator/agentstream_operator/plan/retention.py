"""Decides the janitor's arguments, and what its reports mean for the stream's condition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agentstream_operator.plan.conditions import ConditionUpdate
from agentstream_operator.plan.observed import CROWD, JanitorReport, StreamSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ConditionReason, ConditionType

NO_EVICTION = "noeviction"
"""The only `maxmemory-policy` with which the server never deletes a stream."""

REMEMBERED = 60_000
"""Time in ms for which a condition reports a loss or a shortened history: later passes may trim nothing."""


@dataclass(frozen=True, slots=True)
class JanitorSpec:
    """The arguments of a pass of the janitor, times in ms; see `as1_janitor` in the function library.

    `groups` are name, lease, and minimum age of dead letters of each declared group (0: forever, and entries
    that are pending for too long become none).
    """

    key: str
    min_age: int
    max_length: int  # unsettled entries at which new ones are refused
    max_bytes: int  # the same in bytes of the stream, or 0
    on_full: str  # the policy, as in the resource
    groups: tuple[tuple[str, int, int], ...]
    broadcast: bool = False  # whether receipts need to know about dead letters


@dataclass(frozen=True, slots=True)
class RetentionHistory:
    """Recent reports of the janitor."""

    report: JanitorReport  # the latest one
    overrun_at: int | None = None  # when unsettled entries were trimmed last, in ms of the server's clock
    shortened_at: int | None = None  # when the history was shortened last
    failure: str = ""  # why the latest pass failed, if it did

    @property
    def quiet(self) -> bool:
        """Whether no limit was reached lately."""
        return not self.report.refusing and self.overrun_at is None and self.shortened_at is None


def janitor_actions(report: JanitorReport) -> dict[str, int]:
    """Returns what a pass of the janitor did, by action, for the operator's metrics."""
    return {
        "trimmed": report.trimmed,
        "trimmed_unread": report.overrun,
        "retried": report.moved,
        "dead_lettered": report.expired,
        "consumers_removed": report.forgotten,
    }


def janitor_spec(stream: AgentStream, groups: Iterable[ConsumerGroup]) -> JanitorSpec:
    """Builds the janitor's arguments for a stream with these groups."""
    retention = stream.spec.retention
    return JanitorSpec(
        key=stream.stream_key,
        min_age=retention.min_age.milliseconds,
        max_length=retention.max_length,
        max_bytes=retention.max_bytes or 0,
        on_full=retention.on_full.value,
        broadcast=stream.spec.broadcast,
        groups=tuple(
            sorted(
                (
                    group.group_name,
                    group.spec.delivery.lease.milliseconds,
                    group.spec.dead_letter.min_age.milliseconds if group.spec.dead_letter.enabled else 0,
                )
                for group in groups
            )
        ),
    )


def remember(history: RetentionHistory | None, report: JanitorReport, now: int) -> RetentionHistory:
    """Returns the history with one more report; `now` is in ms of the server's clock."""
    overrun_at = history.overrun_at if history else None
    shortened_at = history.shortened_at if history else None
    return RetentionHistory(
        report, now if report.overrun else overrun_at, now if report.shortened else shortened_at
    )


def remember_failure(history: RetentionHistory | None, why: str) -> RetentionHistory:
    """Returns the history after a pass that failed."""
    return replace(history or RetentionHistory(JanitorReport("stream")), failure=why)


def eviction_text(policy: str) -> str:
    """Says what is wrong with a policy that may evict streams."""
    return f"maxmemory-policy is {policy}, not {NO_EVICTION}"


def retention_healthy(  # noqa: PLR0911 - one per cause
    stream: AgentStream, seen: StreamSeen, history: RetentionHistory | None, eviction: str | None
) -> ConditionUpdate:
    """Returns whether messages are kept as declared and new ones are accepted.

    `eviction` is the server's eviction policy, if it may evict streams.
    """
    if eviction is not None:
        return _unhealthy(ConditionReason.EVICTION_POLICY_WRONG, eviction_text(eviction))
    if history is None:
        return _HEALTHY
    if history.failure:
        return _unhealthy(ConditionReason.JANITOR_FAILED, f"cannot clean up the stream: {history.failure}")
    report = history.report
    for group, why in report.failed.items():
        return _unhealthy(ConditionReason.JANITOR_FAILED, f"cannot clean up after the group {group}: {why}")
    limit = stream.spec.retention.max_length
    if _recent(history.overrun_at, seen.now):
        return _unhealthy(ConditionReason.TRIMMED_UNSETTLED, "trimmed messages that a group had not settled")
    if report.refusing:
        return _unhealthy(
            ConditionReason.ADMISSION_CLOSED,
            f"stream full: the limit of {limit} messages, or maxBytes, is reached",
        )
    if report.held_by is not None:
        return _unhealthy(
            ConditionReason.HELD_BY_GROUP,
            f"messages older than {stream.spec.retention.min_age} not settled by the group {report.held_by}",
        )
    if _recent(history.shortened_at, seen.now):
        return _unhealthy(
            ConditionReason.HISTORY_SHORTENED, f"stream full: settled messages are kept for {_age(seen)} only"
        )
    return _HEALTHY


def group_retention(group: str, history: RetentionHistory | None, crowd: int = 0) -> ConditionUpdate:
    """Returns whether a group prevents its stream from being trimmed, or has a `crowd` of consumers."""
    if crowd:
        return _unhealthy(ConditionReason.TOO_MANY_CONSUMERS, f"the group has more than {CROWD:,} consumers")
    if history is not None and (why := history.report.failed.get(group)):
        return _unhealthy(ConditionReason.JANITOR_FAILED, f"cannot clean up after this group: {why}")
    if history is not None and history.report.held_by == group:
        return _unhealthy(
            ConditionReason.HELD_BY_GROUP, "messages older than the stream's minAge not settled by this group"
        )
    return _HEALTHY


_HEALTHY = ConditionUpdate(ConditionType.RETENTION_HEALTHY, "True", ConditionReason.WITHIN_LIMITS)


def _unhealthy(reason: ConditionReason, message: str) -> ConditionUpdate:
    return ConditionUpdate(ConditionType.RETENTION_HEALTHY, "False", reason, message)


def _recent(at: int | None, now: int) -> bool:
    return at is not None and now - at <= REMEMBERED


def _age(seen: StreamSeen) -> str:
    """Returns the age of the oldest entry in whole minutes."""
    oldest = int(seen.first.partition("-")[0]) if seen.first else seen.now
    return f"{max(seen.now - oldest, 0) // 60_000} minutes"
