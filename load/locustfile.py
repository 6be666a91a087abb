"""The load test: Locust is the agent `loader`, sends at a rate, and judges by what became of it.

    agentstream dev load/k8s.yaml                                   # or: kubectl apply -f load/k8s.yaml
    locust -f load/locustfile.py --headless --rate 1667 --minutes 5 --html load.html

Exits with 1 if a promise is broken: a message lost, 99.9 % not delivered, p95 from end to end 200 ms or more,
a receipt not acknowledged, or the rate not kept. docs/load.md says how to read what it prints.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gevent
from gevent.lock import BoundedSemaphore
from locust import LoadTestShape, User, constant_throughput, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from agentstream import AgentStreamError, OutgoingMessage, Settings
from agentstream.sync import Agent

PER_USER = 10
"""Calls a second of one user."""

SENT, WAITED, ANSWERED, RECEIVED = "send", "end to end", "answer", "receipt"
DELIVERED, P95, KEPT = 0.999, 200.0, 0.95
_DRAINED_WITHIN = 60.0
_BINDING = ".agentstream/bindings/load.loader"


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    """Adds the options of this test."""
    parser.add_argument(
        "--rate", type=int, default=1_667, help="messages a second (default: 100,000 a minute)"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--batch", type=int, default=1, help="messages of one call of send_many (default: 1)")


def options_of(environment: Environment) -> Namespace:
    """Returns the options of a run."""
    options: Namespace | None = environment.parsed_options
    assert options is not None  # noqa: S101 - Locust sets them
    return options


class Steady(LoadTestShape):
    """As many users as the rate needs, at once, until the time is over."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Returns the number of users and how many are started a second; None at the end."""
        assert self.runner is not None  # noqa: S101 - Locust sets it
        options = options_of(self.runner.environment)
        if self.get_run_time() > options.minutes * 60:  # type: ignore[no-untyped-call]
            return None
        users = math.ceil(options.rate / options.batch / PER_USER) + Asker.fixed_count + Announcer.fixed_count
        return users, users


class _Loader:
    """The agent of this process, which is entered where the first user starts."""

    def __init__(self) -> None:
        self._agents: dict[int, Agent] = {}
        self._entering = BoundedSemaphore()

    def agent(self) -> Agent:
        """Returns the agent; another one in a process that was forked off."""
        with self._entering:
            found = self._agents.get(os.getpid())
            if found is None:
                environ = {"AGENTSTREAM_BINDING": _BINDING} | dict(os.environ)
                found = self._agents[os.getpid()] = Agent.connect(Settings.from_env(environ)).__enter__()
            return found


LOADER = _Loader()


class _AgentUser(User):
    abstract = True

    def on_start(self) -> None:
        """Enters the agent."""
        self.agent = LOADER.agent()

    @contextmanager
    def timed(self, name: str, count: int = 1) -> Iterator[None]:
        """Reports a call to Locust, as so many requests."""
        begun, error = time.perf_counter(), None
        try:
            yield
        except AgentStreamError as failed:
            error = failed
        took = (time.perf_counter() - begun) * 1000
        for _ in range(count):
            self.report(name, took, error)

    def report(self, name: str, took: float, error: Exception | None = None) -> None:
        """Reports a time in ms to Locust."""
        self.environment.events.request.fire(
            request_type="agentstream",
            name=name,
            response_time=took,
            response_length=0,
            exception=error,
            context={},
        )


class Sender(_AgentUser):
    """Sends events to `worker`."""

    wait_time = constant_throughput(PER_USER)

    @task
    def send(self) -> None:
        """Sends a message, or a batch of them."""
        batch = options_of(self.environment).batch
        with self.timed(SENT, batch):
            if batch == 1:
                self.agent.send_message(to="worker", type="event", payload={"text": "hello"})
            else:
                message = OutgoingMessage(to="worker", type="event", payload={"text": "hello"})
                self.agent.send_many([message] * batch)


class Asker(_AgentUser):
    """Asks `worker` how long its question took to come, and waits for the answer."""

    fixed_count = 2
    wait_time = constant_throughput(PER_USER)

    @task
    def ask(self) -> None:
        """Asks once."""
        with self.timed(ANSWERED):
            answer = self.agent.request(to="worker", payload={"at": time.time()}, timeout=30)
            self.report(WAITED, answer.payload["waited"] * 1000)


class Announcer(_AgentUser):
    """Sends broadcasts, and waits until all groups have acknowledged them."""

    fixed_count = 1
    wait_time = constant_throughput(2)

    @task
    def announce(self) -> None:
        """Announces something once."""
        with self.timed(RECEIVED):
            self.agent.broadcast(type="event", payload={"text": "hello"}).wait(timeout=30)


class Promise(NamedTuple):
    """A promise, what was seen of it, and whether it was kept."""

    name: str
    seen: str
    kept: bool


def ledger() -> dict[str, Any]:
    """Asks the server what became of all messages of the namespace.

    Raises:
        RuntimeError: the command line got no answer; says why.
    """
    command = [sys.executable, "-m", "agentstream_operator", "lag", "-n", "load", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    found: dict[str, Any] = json.loads(done.stdout)["delivered"]
    return found


def drained(before: dict[str, Any]) -> dict[str, Any]:
    """Waits until nothing waits any more. Returns what became of the messages since `before`."""
    until = time.monotonic() + _DRAINED_WITHIN
    while (found := ledger())["waiting"] and time.monotonic() < until:
        gevent.sleep(1)
    return {name: found[name] - before[name] for name in found if name != "ratio"}


def promises(environment: Environment, became: dict[str, Any]) -> list[Promise]:
    """Judges a run by Locust's times and the server's numbers."""
    options, stats = options_of(environment), environment.stats
    sent, waited, received = (stats.get(name, "agentstream") for name in (SENT, WAITED, RECEIVED))
    delivered = became["acknowledged"] / max(became["added"] - became["waiting"], 1)
    rate = sent.total_rps
    asked, p95 = waited.num_requests, waited.get_response_time_percentile(0.95)
    failures = sum(entry.num_failures for entry in stats.entries.values())
    return [
        Promise("rate", f"{rate:,.0f} of {options.rate:,} messages/s", rate >= KEPT * options.rate),
        Promise("lost", f"{became['lost']:,} of {became['added']:,}", became["lost"] == 0),
        Promise("waiting", f"{became['waiting']:,} a minute later", became["waiting"] == 0),
        Promise("delivered", f"{delivered:.3%}", delivered > DELIVERED),
        Promise("end to end", f"p95 {p95} ms of {asked:,} asked", asked > 0 and p95 < P95),
        Promise("receipts", f"{received.num_requests - received.num_failures:,}", not received.num_failures),
        Promise("failed calls", f"{failures:,}", failures == 0),
    ]


_before: dict[str, Any] = {}


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    """Notes what was delivered before."""
    if not isinstance(environment.runner, WorkerRunner):
        _before.update(ledger())


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: Any) -> None:
    """Prints the verdict, and has Locust exit with it."""
    if isinstance(environment.runner, WorkerRunner):
        return
    found = promises(environment, drained(_before))
    for promise in found:
        print(f"{'ok  ' if promise.kept else 'FAIL'} {promise.name:16} {promise.seen}")
    environment.process_exit_code = 0 if all(promise.kept for promise in found) else 1
