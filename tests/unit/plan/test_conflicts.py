"""Who has a key or a group that several claim."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentstream.protocol.keys import DNS_LABEL
from agentstream_operator.plan.conflicts import (
    claim_of,
    foreign,
    group_conflict,
    may_claim,
    oldest,
    stream_conflict,
)
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.resources.agentstream import AgentStream, AgentStreamSpec
from agentstream_operator.resources.meta import NO_NAMESPACE
from agentstream_operator.resources.status import ConditionReason
from support.resources import a_group, a_stream


def test_the_oldest_wins() -> None:
    older, younger = a_stream("z", age=2), a_stream("a", age=1)
    assert oldest([younger, older]) is older


def test_of_the_same_age_the_namespace_and_then_the_name_decide() -> None:
    first, second, third = a_stream("b", "one"), a_stream("c", "one"), a_stream("a", "two")
    assert oldest([third, second, first]) is first


def test_a_resource_without_a_time_is_the_youngest() -> None:
    timeless = a_stream("a", meta={"creationTimestamp": None})
    dated = a_stream("b")
    assert oldest([timeless, dated]) is dated


def test_nobody_wins_what_nobody_claims() -> None:
    assert oldest([]) is None


@pytest.mark.parametrize(
    ("key", "allowed", "expected"),
    [
        (None, [], True),
        ("{team.other}", [], True),
        ("{team.x}:part", [], True),
        ("{team2.tasks}", [], False),
        ("team.tasks", [], False),
        ("{team}", [], False),
        ("{shared.tasks}", ["{shared.*"], False),
        ("{shared}:tasks", ["{shared}:*"], True),
        ("legacy", ["legacy"], True),
        ("legacy2", ["legacy"], False),
        ("anything", ["*"], True),
        ("{victim.orders}", ["*", "*orders*", "{*", "{victim.orders}"], False),
        # it derives the keys of {victim.orders}
        ("victim.orders", ["*", "*.orders", "[v]ictim.*"], False),
        ("victim.orders", ["victim.*"], True),
        ("team.orders", ["*"], True),
        ("Victim.orders", ["*"], True),
    ],
)
def test_a_key_has_to_be_the_namespaces_own_or_allowed(
    *, key: str | None, allowed: list[str], expected: bool
) -> None:
    assert may_claim(a_stream(**({"key": key} if key else {})), allowed) is expected


@given(
    namespace=st.from_regex(DNS_LABEL, fullmatch=True),
    other=st.from_regex(DNS_LABEL, fullmatch=True),
    rest=st.text("abz019.:-_", max_size=8),
    wildcards=st.lists(st.sampled_from(("*", "?*", "{*", "*.*", "[a-z{]*", "*}*")), min_size=1),
)
def test_no_wildcard_reaches_the_keys_of_another_namespace(
    namespace: str, other: str, rest: str, wildcards: list[str]
) -> None:
    assume(namespace != other)
    for key in (f"{{{other}.x{rest}}}", f"{{{other}.x}}{rest}", f"{other}.{rest}"):
        assert not may_claim(_claiming(key, namespace), [*wildcards, f"*{key[2:]}"]), key
    # not even what names it
    assert not may_claim(_claiming(f"{{{other}.x}}", namespace), [f"{{{other}.x}}", f"{{{other}.*"])


def _claiming(key: str, namespace: str) -> AgentStream:
    """An AgentStream with any key at all."""
    return a_stream(namespace=namespace).model_copy(update={"spec": AgentStreamSpec.model_construct(key=key)})


def test_keys_that_derive_the_same_names_are_one_claim() -> None:
    assert claim_of(a_stream(key="tasks")) == claim_of(a_stream(key="{tasks}"))
    assert claim_of(a_stream(key="{a}:x")) != claim_of(a_stream(key="{a}:y"))


def test_the_winner_has_no_conflict_and_the_loser_names_it() -> None:
    winner, loser = a_stream("older", "one", key="k"), a_stream(key="k")
    assert stream_conflict(winner, winner).status == "False"
    condition = stream_conflict(loser, winner)
    assert (condition.status, condition.reason) == ("True", ConditionReason.KEY_CLAIMED)
    assert condition.message == "k is already used by the older AgentStream one/older"


def test_a_key_that_may_not_be_claimed_is_a_conflict() -> None:
    assert stream_conflict(a_stream(key="k"), None).reason is ConditionReason.KEY_NOT_ALLOWED


@pytest.mark.parametrize(
    ("owner", "status"),
    [({}, "False"), ({"installation": "ours"}, "False"), ({"installation": "theirs"}, "True")],
)
def test_a_stream_of_another_installation_is_a_conflict(owner: dict[str, str], status: str) -> None:
    assert (
        foreign(a_stream(), StreamSeen(now=0, type="stream", meta=owner), "ours", NO_NAMESPACE).status
        == status
    )


def test_a_group_that_is_claimed_twice_is_a_conflict_for_the_younger() -> None:
    winner, loser = a_group("older"), a_group(group="older")
    assert group_conflict(winner, winner).status == "False"
    assert group_conflict(loser, winner).reason is ConditionReason.GROUP_CLAIMED
