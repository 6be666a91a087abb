"""What a scrape shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.plan.signal import UNKNOWN, Signal
from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.metrics import GroupWork, OperatorHealth
from agentstream_operator.serve.metrics import Metrics, MetricsSample

NUMBERS = MetricsSample(
    leads=True,
    health=OperatorHealth(None, complete=True, waiting=3, oldest=1.5, round_trips=42, janitor={"trimmed": 5}),
    conditions=Counter({("AgentStream", "Ready", "True"): 2, ("AgentStream", "Ready", "False"): 1}),
    requests=Counter({("patch", "agentstreams", 200): 4, ("get", "secrets", 0): 1}),
    events=Counter({"agentstreams": 9}),
    missed=2,
)


def scraped(metrics: Metrics) -> dict[str, float]:
    """What a scrape shows, by name and labels."""
    status, content_type, body = metrics.reply()
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def ours(metrics: Metrics) -> dict[str, float]:
    """Of what a scrape shows, what is not about the process."""
    return {name: value for name, value in scraped(metrics).items() if name.startswith("agentstream_")}


def test_a_scrape_shows_how_the_operator_is_now() -> None:
    assert ours(Metrics(lambda: NUMBERS)) == {
        "agentstream_leader": 1,
        "agentstream_queue_depth": 3,
        "agentstream_queue_oldest_seconds": 1.5,
        "agentstream_redis_up": 1,
        "agentstream_redis_round_trips_total": 42,
        "agentstream_janitor_total action=trimmed": 5,
        "agentstream_resources condition=Ready kind=AgentStream status=True": 2,
        "agentstream_resources condition=Ready kind=AgentStream status=False": 1,
        "agentstream_api_requests_total code=200 resource=agentstreams verb=patch": 4,
        "agentstream_api_requests_total code=0 resource=secrets verb=get": 1,
        "agentstream_watch_events_total resource=agentstreams": 9,
        "agentstream_watch_missed_total": 2,
    }


def test_numbers_are_read_at_every_scrape() -> None:
    now = NUMBERS
    metrics = Metrics(lambda: now)
    assert ours(metrics)["agentstream_watch_missed_total"] == 2
    now = replace(NUMBERS, missed=3)
    assert ours(metrics)["agentstream_watch_missed_total"] == 3


def test_a_server_that_does_not_answer_is_down() -> None:
    assert NUMBERS.health is not None
    down = replace(NUMBERS, health=replace(NUMBERS.health, outage="refused"))
    assert ours(Metrics(lambda: down))["agentstream_redis_up"] == 0


def test_a_standby_says_nothing_of_what_it_does_not_do() -> None:
    standby = MetricsSample(
        leads=False, health=None, conditions=Counter(), requests=Counter(), events=Counter(), missed=0
    )
    assert ours(Metrics(lambda: standby)) == {"agentstream_leader": 0, "agentstream_watch_missed_total": 0}


def test_looks_are_counted_by_how_they_went_and_how_long_they_took() -> None:
    metrics = Metrics(lambda: NUMBERS)
    metrics.reconciled("AgentStream", Outcome.SUCCESS, 0.002)
    metrics.reconciled("AgentStream", Outcome.SUCCESS, 0.2)
    metrics.reconciled("Agent", Outcome.RETRY, 20)
    found = ours(metrics)
    name = "agentstream_reconcile_duration_seconds"
    stream, agent = "kind=AgentStream outcome=success", "kind=Agent outcome=retry"
    assert found[f"{name}_count {stream}"] == 2
    assert found[f"{name}_sum {stream}"] == pytest.approx(0.202)
    assert found[f"{name}_bucket kind=AgentStream le=0.0025 outcome=success"] == 1
    assert found[f"{name}_bucket kind=Agent le=10.0 outcome=retry"] == 0
    assert found[f"{name}_count {agent}"] == 1


def test_only_success_counts_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    metrics = Metrics(lambda: NUMBERS)
    metrics.reconciled("AgentStream", Outcome.SUCCESS, 0.1)
    metrics.reconciled("ConsumerGroup", Outcome.RETRY, 0.1)
    metrics.reconciled("Agent", Outcome.ERROR, 0.1)
    name = "agentstream_reconcile_last_success_timestamp_seconds"
    shown = {key: value for key, value in ours(metrics).items() if key.startswith(name)}
    assert shown == {f"{name} kind=AgentStream": 1_800_000_000}


def test_a_scrape_shows_what_the_process_uses() -> None:
    found = scraped(Metrics(lambda: NUMBERS))
    assert found["process_resident_memory_bytes"] > 0
    assert any(name.startswith("python_info") for name in found)


def test_two_operators_of_one_process_do_not_get_into_each_others_way() -> None:
    first, second = Metrics(lambda: NUMBERS), Metrics(lambda: NUMBERS)
    first.reconciled("Agent", Outcome.SUCCESS, 0.1)
    count = "agentstream_reconcile_duration_seconds_count kind=Agent outcome=success"
    assert count in ours(first)
    assert count not in ours(second)


def test_the_work_of_groups_is_shown() -> None:
    signal = Signal(undelivered=5, pending=3, due=1, oldest=1.5, oldest_pending=4.0, arrival=2.5)
    work = (GroupWork("team", "tasks", "coder", signal, pace=12.5, desired=2),)
    shown = ours(Metrics(lambda: replace(NUMBERS, work=work)))
    labels = "group=coder namespace=team stream=tasks"
    found = {name.removesuffix(labels).strip(): value for name, value in shown.items() if labels in name}
    assert found == {
        "agentstream_group_lag_known": 1,
        "agentstream_group_desired_replicas": 2,
        "agentstream_group_service_rate": 12.5,
        "agentstream_group_undelivered": 6,
        "agentstream_group_pending": 3,
        "agentstream_group_backlog": 9,
        "agentstream_group_oldest_seconds": 4.0,
        "agentstream_group_arrival_rate": 2.5,
    }


def test_what_is_not_known_of_a_group_is_not_shown_as_none() -> None:
    work = (GroupWork("team", "tasks", "coder", UNKNOWN, pace=None, desired=None),)
    shown = ours(Metrics(lambda: replace(NUMBERS, work=work)))
    found = {name: value for name, value in shown.items() if name.startswith("agentstream_group_")}
    assert found == {"agentstream_group_lag_known group=coder namespace=team stream=tasks": 0}
