"""The small HTTP server, and what it serves: probes and a scrape."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentstream_operator.reconcile.engine import Outcome
from agentstream_operator.reconcile.report.metrics import OperatorHealth
from agentstream_operator.serve.http import probe_reply, serving
from agentstream_operator.serve.metrics import Metrics, MetricsSample
from agentstream_operator.serve.probes import MISSED, STUCK, ProbeState, live, ready
from support.figures import no_figures
from support.servers import free_port

NUMBERS = MetricsSample(
    leads=True,
    health=OperatorHealth(None, complete=True, waiting=3, oldest=1.5, round_trips=42, janitor={"trimmed": 5}),
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
    assert ours(Metrics(lambda: NUMBERS, no_figures)) == {
        "agentstream_leader": 1,
        "agentstream_queue_depth": 3,
        "agentstream_queue_oldest_seconds": 1.5,
        "agentstream_redis_up": 1,
        "agentstream_redis_round_trips_total": 42,
        "agentstream_janitor_total action=trimmed": 5,
        "agentstream_api_requests_total code=200 resource=agentstreams verb=patch": 4,
        "agentstream_api_requests_total code=0 resource=secrets verb=get": 1,
        "agentstream_watch_events_total resource=agentstreams": 9,
        "agentstream_watch_missed_total": 2,
    }


def test_numbers_are_read_at_every_scrape() -> None:
    now = NUMBERS
    metrics = Metrics(lambda: now, no_figures)
    assert ours(metrics)["agentstream_watch_missed_total"] == 2
    now = replace(NUMBERS, missed=3)
    assert ours(metrics)["agentstream_watch_missed_total"] == 3


def test_a_server_that_does_not_answer_is_down() -> None:
    assert NUMBERS.health is not None
    down = replace(NUMBERS, health=replace(NUMBERS.health, outage="refused"))
    assert ours(Metrics(lambda: down, no_figures))["agentstream_redis_up"] == 0


def test_a_standby_says_nothing_of_what_it_does_not_do() -> None:
    standby = MetricsSample(leads=False, health=None, requests=Counter(), events=Counter(), missed=0)
    assert ours(Metrics(lambda: standby, no_figures)) == {
        "agentstream_leader": 0,
        "agentstream_watch_missed_total": 0,
    }


def test_looks_are_counted_by_how_they_went_and_how_long_they_took() -> None:
    metrics = Metrics(lambda: NUMBERS, no_figures)
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
    metrics = Metrics(lambda: NUMBERS, no_figures)
    metrics.reconciled("AgentStream", Outcome.SUCCESS, 0.1)
    metrics.reconciled("ConsumerGroup", Outcome.RETRY, 0.1)
    metrics.reconciled("Agent", Outcome.ERROR, 0.1)
    name = "agentstream_reconcile_last_success_timestamp_seconds"
    shown = {key: value for key, value in ours(metrics).items() if key.startswith(name)}
    assert shown == {f"{name} kind=AgentStream": 1_800_000_000}


def test_a_scrape_shows_what_the_process_uses() -> None:
    found = scraped(Metrics(lambda: NUMBERS, no_figures))
    assert found["process_resident_memory_bytes"] > 0
    assert any(name.startswith("python_info") for name in found)


def test_two_operators_of_one_process_do_not_get_into_each_others_way() -> None:
    first, second = Metrics(lambda: NUMBERS, no_figures), Metrics(lambda: NUMBERS, no_figures)
    first.reconciled("Agent", Outcome.SUCCESS, 0.1)
    count = "agentstream_reconcile_duration_seconds_count kind=Agent outcome=success"
    assert count in ours(first)
    assert count not in ours(second)


def health(
    *, outage: str | None = None, complete: bool = True, oldest: float = 0.0, waiting: int = 0
) -> OperatorHealth:
    """A healthy engine, but for this."""
    return OperatorHealth(outage, complete, waiting, oldest, round_trips=7)


WELL = ProbeState(leads=True, health=health())
STANDBY = ProbeState(leads=False)
UNREACHABLE = ProbeState(leads=True, health=health(outage="refused"))
STARTING = ProbeState(leads=True)
LISTING = ProbeState(leads=True, health=health(complete=False))
BUSY = ProbeState(leads=True, health=health(waiting=10_000, oldest=STUCK))
STUCK_FAST = ProbeState(leads=True, health=health(waiting=1, oldest=STUCK + 1))
NEARLY_DEAF = ProbeState(leads=True, health=health(), missed=MISSED - 1)
DEAF = ProbeState(leads=True, health=health(), missed=MISSED)
STANDING = ProbeState(leads=True, health=replace(health(), standing="cannot measure streams"))
BLIND = ProbeState(leads=True, health=health(), unwatched="there is no CRD of AgentStream")


@pytest.mark.parametrize("state", [WELL, STANDBY, STARTING, LISTING, BUSY, NEARLY_DEAF, UNREACHABLE, BLIND])
def test_a_restart_would_not_help_one_that_works_or_waits(state: ProbeState) -> None:
    assert live(state) is None


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (STUCK_FAST, "a resource has waited 301 s to be reconciled"),
        (DEAF, "watches missed 3 changes in a row"),
        (STANDING, "cannot measure streams"),
    ],
)
def test_one_that_hangs_or_hears_nothing_is_not_alive_and_does_no_work(state: ProbeState, why: str) -> None:
    assert live(state) == why
    assert ready(state) == why


@pytest.mark.parametrize("state", [WELL, STANDBY, BUSY, NEARLY_DEAF])
def test_one_that_works_or_waits_for_the_lease_is_ready(state: ProbeState) -> None:
    assert ready(state) is None


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (STARTING, "starting"),
        (LISTING, "listing resources"),
        (UNREACHABLE, "Redis or Valkey does not answer: refused"),
        (BLIND, "cannot watch resources: there is no CRD of AgentStream"),
    ],
)
def test_one_that_cannot_work_yet_says_what_it_waits_for(state: ProbeState, why: str) -> None:
    assert ready(state) == why


def test_what_comes_first_is_told_first() -> None:
    both = ProbeState(leads=True, health=health(outage="refused", complete=False))
    assert ready(both) == "listing resources"


def test_a_probe_is_answered_with_a_code_and_a_text() -> None:
    assert probe_reply(None) == (200, "text/plain; charset=utf-8", b"ok\n")
    assert probe_reply(None, "leads") == (200, "text/plain; charset=utf-8", b"leads\n")
    assert probe_reply("störrisch") == (503, "text/plain; charset=utf-8", "störrisch\n".encode())


has_both = socket.has_dualstack_ipv6
PLAIN = "text/plain; charset=utf-8"


async def get(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def test_every_path_has_its_answer() -> None:
    answers = {"/livez": lambda: (200, PLAIN, b"ok\n"), "/readyz": lambda: (503, PLAIN, b"starting\n")}
    async with serving(free_port(), answers) as port:
        assert await get(port, "/livez") == (200, PLAIN, "ok\n")
        assert await get(port, "/readyz") == (503, PLAIN, "starting\n")
        assert (await get(port, "/"))[0] == 404
        assert (await get(port, "/livez", "POST"))[0] == 405


async def test_answers_are_of_the_moment() -> None:
    count = 0

    def answer() -> tuple[int, str, bytes]:
        nonlocal count
        count += 1
        return 200, PLAIN, str(count).encode()

    async with serving(free_port(), {"/": answer}) as port:
        assert [(await get(port, "/"))[2] for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("both", [True, False])
async def test_without_a_port_any_free_one_will_do(monkeypatch: pytest.MonkeyPatch, *, both: bool) -> None:
    # not every machine has IPv6
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: both and has_both())
    async with serving(0, {"/": lambda: (200, PLAIN, b"ok")}) as port:
        assert (await get(port, "/"))[0] == 200


async def test_a_port_that_is_taken_is_told_of() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(OSError, match="Address already in use"):
            async with serving(taken.getsockname()[1], {}):
                pass


async def test_a_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        async with serving(port, {"/": lambda: (200, PLAIN, b"ok")}):
            assert (await get(port, "/"))[0] == 200
