"""Which consumers are those of processes that are gone."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.observed import ConsumerSeen, Gone


@pytest.mark.parametrize(
    ("gone", "consumer", "covered"),
    [
        (Gone("pod-1"), "pod-1.zz", True),
        (Gone("pod-1"), "pod-10.zz", False),
        (Gone("pod-1"), "pod-1.zz.zz", False),
        (Gone("pod-1"), "pod-1", False),
        # 35 * 36 + 35
        (Gone("pod-1", 1296), "pod-1.zz", True),
        (Gone("pod-1", 1295), "pod-1.zz", False),
        (Gone("pod-1", 1296), "pod-2.zz", False),
        (Gone("pod-1", 1296), "pod-1.zz-7-there", True),
        (Gone("pod-1", 1295), "pod-1.zz-7-there", False),
        (Gone("pod-1", 1), "pod-1.?", True),
    ],
)
def test_a_process_is_gone_with_its_pod_or_with_all_that_started_before(
    gone: Gone, consumer: str, *, covered: bool
) -> None:
    assert gone.covers(consumer) is covered


def test_a_consumer_is_named_after_its_pod() -> None:
    assert ConsumerSeen("coder.v2-5f-x.lx3k", 0, 0).pod == "coder.v2-5f-x"
