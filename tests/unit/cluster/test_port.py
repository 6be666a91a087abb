"""Which names are those of pods that a group once had."""

from __future__ import annotations

import pytest

from agentstream_operator.cluster.port import Pods

PODS = Pods("coder-consumer-", frozenset({"coder-consumer-5f4d-abcde"}))


@pytest.mark.parametrize(
    ("pod", "lost"),
    [
        ("coder-consumer-5f4d-vwxyz", True),
        # of an older template
        ("coder-consumer-9c8b-abcde", True),
        ("coder-consumer-5f4d-abcde", False),
        # of other groups: coder-consumer, and my-coder
        ("coder-consumer-consumer-5f4d-abcde", False),
        ("my-coder-consumer-5f4d-abcde", False),
        # of agents that run elsewhere
        ("coder-consumer-laptop", False),
        ("coder-consumer-", False),
        ("coder", False),
        ("", False),
    ],
)
def test_a_lost_pod_is_named_like_the_groups_and_not_alive(pod: str, *, lost: bool) -> None:
    assert PODS.has_lost(pod) is lost
