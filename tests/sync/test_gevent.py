"""Agents in programs whose standard library gevent has patched, such as locust's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.topology import Topology

PROGRAM = Path(__file__).with_name("under_gevent.py")
COUNT = 200


def of(topology: Topology, what: str) -> dict[str, Any]:
    """What the program said."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), topology.url, what],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_agents_of_a_process_send_and_consume_beside_other_greenlets(topology: Topology) -> None:
    found = of(topology, "iterate")
    assert found["numbers"] == list(range(COUNT))
    assert found["turns"] > COUNT / 10


def test_a_handler_that_yields_to_nobody_costs_no_lease(topology: Topology) -> None:
    assert of(topology, "handle")["numbers"] == list(range(COUNT))


def test_calls_that_are_given_up_harm_no_other(topology: Topology) -> None:
    found = of(topology, "give_up")
    assert found["numbers"] == list(range(COUNT))
    assert found["given up"] > 0


def test_agents_that_have_ended_leave_nothing_open(topology: Topology) -> None:
    counts = of(topology, "come_and_go")["open"]
    assert counts[1:] == counts[1:2] * 4


def test_a_program_that_yields_to_nobody_answers_probes(topology: Topology) -> None:
    assert of(topology, "probed")["status"] == 200


def test_an_agent_that_was_entered_before_the_patch_says_so(topology: Topology) -> None:
    assert "post_worker_init" in of(topology, "patch_late")["error"]
