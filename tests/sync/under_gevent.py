"""A program as gevent's users write it: the standard library is patched before anything else is imported.

Arguments: the server's URL, and what to do. Prints what came of it, as JSON.
"""

import sys

from gevent import monkey

if sys.argv[2] != "patch_late":
    monkey.patch_all()

import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from agentstream import AgentStreamError
from agentstream.identity.settings import Settings
from agentstream.sync import Agent, Delivery
from agentstream.transport.endpoint import Endpoint

URL, WHAT = sys.argv[1:]
COUNT = 200

log = logging.getLogger()
logging.basicConfig(level=logging.DEBUG)


def agent(name: str, port: int | None = None) -> Agent:
    """One of the agents of the test."""
    return Agent.connect(
        Settings(agent=name, pod=f"{name}-0", namespace="test", source=Endpoint(URL), health_port=port)
    )


def send(planner: Agent) -> None:
    """Sends from as many greenlets as there are messages."""
    calls = [
        gevent.spawn(planner.send_message, to="coder", type="event", payload={"n": n}) for n in range(COUNT)
    ]
    gevent.joinall(calls, raise_error=True)


def iterate() -> dict[str, Any]:
    """Two agents at once: one sends, one iterates; other greenlets go on meanwhile."""
    numbers: list[int] = []
    turns = 0

    def consume() -> None:
        for delivery in coder.stream_consume("tasks"):
            with delivery:
                gevent.sleep(0.001)
                numbers.append(delivery.payload["n"])
            if len(numbers) == COUNT:
                return

    def turn() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.001)
            turns += 1

    with agent("planner") as planner, agent("coder") as coder:
        gevent.spawn(turn)
        consuming = gevent.spawn(consume)
        send(planner)
        consuming.get(timeout=30)
    return {"numbers": sorted(numbers), "turns": turns}


def handle() -> dict[str, Any]:
    """Handlers beside the program, each in a thread, for longer than a lease."""
    numbers: list[int] = []

    with agent("planner") as planner, agent("coder") as coder:

        @coder.on("event")
        def work(delivery: Delivery) -> None:
            if delivery.payload["n"] == 0:  # for two leases and more
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    "never lets another greenlet run"
            else:
                gevent.sleep(0.01)
            numbers.append(delivery.payload["n"])

        with coder.running(concurrency=8):
            send(planner)
            deadline = time.monotonic() + 30
            while len(numbers) < COUNT and time.monotonic() < deadline:
                gevent.sleep(0.01)
    return {"numbers": sorted(numbers)}


def give_up() -> dict[str, Any]:
    """Waits for answers that end before they come; what was sent is sent, and the agent goes on."""
    numbers: list[int] = []
    given_up = 0

    with agent("planner") as planner, agent("coder") as coder:

        @coder.on("event")
        def work(delivery: Delivery) -> None:
            log.info("handles %s", delivery.payload)
            numbers.append(delivery.payload["n"])

        def send_in_time(n: int) -> None:
            nonlocal given_up
            log.info("sends %d", n)
            try:
                # in the middle of a call, as a rule, for every second one
                with gevent.Timeout(0.0005 if n % 2 else 30):
                    planner.send_message(to="coder", type="event", payload={"n": n})
            except gevent.Timeout:
                given_up += 1

        with coder.running(concurrency=8):
            gevent.joinall([gevent.spawn(send_in_time, n) for n in range(COUNT)], raise_error=True)
            send(planner)
            deadline = time.monotonic() + 30
            while len(set(numbers)) < COUNT and time.monotonic() < deadline:
                gevent.sleep(0.01)
    return {"numbers": sorted(set(numbers)), "given up": given_up}


def come_and_go() -> dict[str, Any]:
    """Agents that are entered and left again leave no file open."""
    counts = []
    for _ in range(5):
        with agent("planner") as planner, agent("coder"):
            planner.send_message(to="coder", type="event", payload={"n": 0})
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    return {"open": counts}


def probed() -> dict[str, Any]:
    """Answers a probe while a handler lets no other greenlet run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with agent("planner", port):
        program = (
            "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)",
            f"http://127.0.0.1:{port}/livez",
        )
        asking = subprocess.Popen([sys.executable, "-c", *program], stdout=subprocess.PIPE)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            "never lets another greenlet run"
        return {"status": int(asking.communicate()[0])}


def patch_late() -> dict[str, Any]:
    """Patches when the agent is entered already, as in gunicorn's hook `post_fork`."""
    with agent("planner") as planner:
        monkey.patch_all()
        try:
            planner.send_message(to="coder", type="event", payload={"n": 0})
        except AgentStreamError as error:
            sys.stdout.write(json.dumps({"error": str(error)}))
            sys.stdout.flush()
            # what was begun before cannot be ended in order
            os._exit(0)
    raise AssertionError


DOES: dict[str, Callable[[], dict[str, Any]]] = {
    work.__name__: work for work in (iterate, handle, give_up, come_and_go, probed, patch_late)
}
sys.stdout.write(json.dumps(DOES[WHAT]()))
