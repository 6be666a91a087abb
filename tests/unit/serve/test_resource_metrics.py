"""The metrics of resources: complete, bounded, as Prometheus reads them, silent about what is not known."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.plan.accounting import BOUNDS, Account, GroupTotals, accumulate_account
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.reconcile.report.figures import Figures, GroupWork, StreamWork
from agentstream_operator.resources.reasons import ConditionReason
from agentstream_operator.serve.metrics import Metrics
from agentstream_operator.serve.resource_metrics import BUCKETS, FAMILIES, resource_metrics
from support.figures import FIGURES, GROUP, HISTORY, OBSERVED, SEEN, STREAM, WORK
from support.helm import ROOT
from unit.serve.test_serve import NUMBERS

OF = "group=coder namespace=team stream=tasks"


def shown(figures: Figures, *, each: bool = True) -> dict[str, float]:
    """What a scrape shows, by name and labels; read as Prometheus reads it."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(resource_metrics(figures, each=each).decode()):
        for sample in family.samples:
            labels = "".join(f" {key}={value}" for key, value in sorted(sample.labels.items()))
            assert f"{sample.name}{labels}" not in found
            found[f"{sample.name}{labels}"] = sample.value
    return found


def of_group(figures: Figures) -> dict[str, float]:
    """What it shows of the group, without its labels; of the histogram the count alone."""
    prefix = "agentstream_group_"
    return {
        re.sub(r" (group|namespace|stream)=\w+", "", name.removeprefix(prefix)): value
        for name, value in shown(figures).items()
        if name.startswith(prefix) and "_bucket" not in name
    }


def test_everything_is_shown_of_a_group() -> None:
    assert of_group(FIGURES) == {
        "lag_known": 1,
        "taken": 7,
        "desired_replicas": 2,
        "max_replicas": 5,
        "target_age_seconds": 60,
        "consumers state=ready": 1,
        "consumers state=missing": 1,
        "registered_consumers": 2,
        "service_rate": 12.5,
        "undelivered": 8,
        "pending": 3,
        "backlog": 11,
        "retrying": 3,
        "delayed": 3,
        "dead_letters": 6,
        "oldest_seconds": 4.0,
        "oldest_waiting_seconds": 1.5,
        "arrival_rate": 2.5,
        "added_total": 20,
        "settled_total outcome=acked": 9,
        "settled_total outcome=skipped": 1,
        "settled_total outcome=dead": 6,
        "retried_total": 4,
        "replayed_total": 2,
        "lost_total": 3,
        "ledger outcome=acknowledged": 0,
        "ledger outcome=skipped": 0,
        "ledger outcome=dead": 0,
        "ledger outcome=discarded": 0,
        "ledger outcome=lost": 0,
        "ledger outcome=waiting": 14,
        "latency_seconds_count": 9,
    }


def test_latencies_are_counted_by_what_the_server_counted() -> None:
    found = shown(FIGURES)
    name = "agentstream_group_latency_seconds_bucket group=coder le={} namespace=team stream=tasks"
    within = {le: found[name.format(le)] for le in ("0.02", "0.05", "0.1", "0.2", "0.5", "1", "300", "+Inf")}
    assert within == {"0.02": 0, "0.05": 4, "0.1": 4, "0.2": 7, "0.5": 7, "1": 8, "300": 8, "+Inf": 9}
    # nobody counts the seconds
    assert not any("latency_seconds_sum" in name for name in found)


def test_the_server_counts_by_every_bucket() -> None:
    library = (ROOT / "sdk/agentstream/functions/settle.lua").read_text()
    (bounds,) = re.findall(r"local BOUNDS = \{([^}]*)\}", library)
    counted = tuple(int(bound) for bound in bounds.split(","))
    assert counted == BOUNDS
    assert set(BUCKETS) <= set(counted)


def test_everything_is_shown_of_a_stream_and_a_replay() -> None:
    prefixes = ("agentstream_stream_", "agentstream_replay")
    assert {name: value for name, value in shown(FIGURES).items() if name.startswith(prefixes)} == {
        "agentstream_stream_info namespace=team on_full=Backpressure stream=tasks": 1,
        "agentstream_stream_length namespace=team stream=tasks": 12,
        "agentstream_stream_limit namespace=team stream=tasks": 1_000,
        "agentstream_stream_unsettled namespace=team stream=tasks": 8,
        "agentstream_stream_admission_open namespace=team stream=tasks": 1,
        "agentstream_stream_history_seconds namespace=team stream=tasks": 60,
        "agentstream_stream_history_shortened namespace=team stream=tasks": 1,
        "agentstream_stream_trimmed_unsettled namespace=team stream=tasks": 0,
        "agentstream_stream_janitor_failing namespace=team stream=tasks": 0,
        "agentstream_stream_bytes namespace=team stream=tasks": 4_096,
        "agentstream_replays namespace=team phase=Running": 1,
        "agentstream_replay_matched group=coder namespace=team replay=again": 9,
        "agentstream_replay_moved group=coder namespace=team replay=again": 7,
        "agentstream_replay_skipped group=coder namespace=team replay=again": 2,
        "agentstream_replay_handled group=coder namespace=team replay=again": 4,
        "agentstream_replay_dead group=coder namespace=team replay=again": 1,
    }


def test_a_full_stream_is_closed() -> None:
    full = msgspec.structs.replace(OBSERVED, length=1_000)
    figures = replace(FIGURES, streams=(StreamWork(STREAM, ("coder",), full, HISTORY),))
    assert shown(figures)["agentstream_stream_admission_open namespace=team stream=tasks"] == 0


def test_conditions_have_reasons_of_the_documented_list() -> None:
    found = shown(FIGURES)
    reason = ConditionReason.DEAD_LETTERS
    labels = f"kind=ConsumerGroup name=coder namespace=team reason={reason} status=True type=DeadLettering"
    assert found[f"agentstream_condition {labels}"] == 1
    assert found["agentstream_resources condition=DeadLettering kind=ConsumerGroup status=True"] == 1


def test_every_family_has_a_sample_here_and_a_row_in_the_documentation() -> None:
    text = resource_metrics(FIGURES, each=True).decode()
    pages = (ROOT / "docs/metrics.md").read_text()
    for name, (kind, _) in FAMILIES.items():
        assert f"# TYPE {name} {kind}\n" in text
        assert f"`{name}" in pages, name
        assert name.endswith("_total") == (kind == "counter")


def test_single_resources_can_be_left_out() -> None:
    assert shown(FIGURES, each=False) == {
        "agentstream_resources condition=DeadLettering kind=ConsumerGroup status=True": 1,
        "agentstream_replays namespace=team phase=Running": 1,
    }


NUMBER = st.integers(0, 10**12)
SEENS = st.builds(
    GroupSeen,
    st.booleans(),
    consumers=NUMBER,
    pending=NUMBER,
    undelivered=NUMBER,
    exact=st.booleans(),
    retry_length=NUMBER,
    retry_pending=NUMBER,
    delayed=NUMBER,
    due=NUMBER,
    dead=NUMBER,
    unreadable=st.booleans(),
)
WORKS = st.builds(
    GroupWork,
    st.just(GROUP),
    seen=st.none()
    | st.builds(
        StreamSeen,
        st.sampled_from(["none", "stream"]),
        now=NUMBER,
        groups=st.dictionaries(st.sampled_from(["coder", "x"]), SEENS),
    ),
    arrivals=st.none(),
    pace=st.none() | st.floats(0, 1e9),
    desired=st.none() | st.integers(0, 100),
    ready=st.none() | st.integers(0, 100),
    account=st.none() | st.builds(Account, sent=NUMBER, acknowledged=NUMBER, dead=NUMBER),
)


@given(WORKS)
def test_what_is_not_known_has_no_sample(work: GroupWork) -> None:
    found = of_group(Figures(groups=(work,)))
    seen = work.seen.groups.get("coder") if work.seen is not None else None
    exists = seen is not None and seen.exists
    assert found["lag_known"] == exists
    for name in (
        "undelivered",
        "pending",
        "backlog",
        "oldest_seconds",
        "arrival_rate",
        "registered_consumers",
    ):
        assert (name in found) == exists
    for name in ("dead_letters", "retrying", "delayed"):
        assert (name in found) == (exists and seen is not None and not seen.unreadable)
    counted = ("added_total", "settled_total outcome=dead", "lost_total", "latency_seconds_count")
    assert {name in found for name in counted} == {work.account is not None}
    assert ("service_rate" in found) == (work.pace is not None)
    assert ("consumers state=ready" in found) == (work.desired is not None and work.ready is not None)
    # and what is known is shown as it is
    if exists and seen is not None and not seen.unreadable:
        assert found["dead_letters"] == seen.dead


TOTALS = st.builds(
    GroupTotals,
    **dict.fromkeys(("added", "acked", "skipped", "retried", "dead", "replayed", "settled"), NUMBER),
    **dict.fromkeys(("trimmed", "vanished", "retries_gone", "open", "retries", "taken"), st.integers(0, 50)),
    base=st.none() | st.just((1, 2)) | st.just((3, 4)),
    buckets=st.dictionaries(st.sampled_from([50.0, 200.0, float("inf")]), st.integers(0, 1_000)),
)


@given(st.lists(TOTALS, min_size=2, max_size=8))
def test_counters_never_fall_whatever_the_server_loses(totals: list[GroupTotals]) -> None:
    account, before = Account(), dict[str, float]()
    for earlier, later in pairwise(totals):
        account = accumulate_account(account, earlier, later)
        work = msgspec.structs.replace(WORK, account=account)
        found = shown(Figures(groups=(work,)))
        now = {name: value for name, value in found.items() if "_total" in name or "_latency_" in name}
        assert all(value <= now[name] for name, value in before.items())
        before = now


def test_after_a_restart_counters_begin_at_zero_and_the_rest_is_as_it_was() -> None:
    restarted = msgspec.structs.replace(WORK, account=Account())
    before, after = of_group(FIGURES), of_group(replace(FIGURES, groups=(restarted,)))
    assert before.keys() == after.keys()
    for name, value in after.items():
        counts = "_total" in name or name == "latency_seconds_count"
        assert value == (0 if counts else before[name])


async def test_a_scrape_has_all_and_scrapes_at_once_share_it() -> None:
    asked = 0

    async def figures() -> Figures:
        nonlocal asked
        asked += 1
        return FIGURES

    metrics = Metrics(lambda: NUMBERS, figures)
    first, second = await asyncio.gather(metrics.scrape(), metrics.scrape())
    assert first == second
    assert asked == 1
    names = {family.name for family in text_string_to_metric_families(first[2].decode())}
    assert names > {"agentstream_leader", "agentstream_condition", "agentstream_group_settled"}
    await metrics.scrape()
    assert asked == 2


@pytest.mark.parametrize("name", ["unreadable", "exists"])
def test_a_group_that_is_not_there_is_not_idle(name: str) -> None:
    group = msgspec.structs.replace(SEEN, **{name: name == "unreadable"})
    seen = msgspec.structs.replace(OBSERVED, groups={"coder": group})
    assert "dead_letters" not in of_group(Figures(groups=(msgspec.structs.replace(WORK, seen=seen),)))
