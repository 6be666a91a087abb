"""A bug fills a group's dead letters, its fix is rolled out, and they are replayed; others notice nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from harness.chart import Installation
from harness.cli import Cli
from harness.crew import Crew
from harness.images import COUNTING
from harness.kind import Cluster
from harness.kubectl import Kubectl, Manifest
from harness.ledger import Ledger
from harness.manifests import a_group, a_stream, a_template
from harness.waiting import until
from harness.watch import Watch

SENT, BUG = 300, 3
"""How many messages there are, and which of them the bug is for: those whose number it divides."""

BROKEN = SENT // BUG


@pytest.fixture(scope="module", autouse=True)
def queue_server(cluster: Cluster) -> None:
    """What the command line asks, for everybody who may create a token of its account."""
    Installation(cluster).install("queueServer.enabled=true", "queueServer.cliMay=everything")


def a_consumer(name: str, **spec: Any) -> Manifest:
    """A group of the stream `coder`, which notes what it handles."""
    template = a_template("python", "buggy.py", image=COUNTING)
    variables = {"LEDGER": "load", "STREAM": "coder", "BUG": str(BUG) if name == "coder" else "0"}
    template["spec"]["containers"][0]["env"] = [{"name": n, "value": v} for n, v in variables.items()]
    delivery = {"maxDeliveries": 2, "backoff": {"initial": "100ms", "max": "100ms"}}
    return a_group(name, "coder", template=template, delivery=delivery, deliver="All", **spec)


@pytest.fixture
def crew(installation: Installation, place: Kubectl, ledger: Ledger) -> Iterator[Crew]:
    """The stream `coder` with two groups: `coder`, which has a bug, and `reviewer`, which has none."""
    place.apply(a_stream("coder"), a_consumer("coder"), a_consumer("reviewer"))
    place.ready("agentstream/coder", "consumergroup/coder", "consumergroup/reviewer")
    with Watch(place) as watch:
        yield Crew(place, installation.redis, ledger, watch, "coder")
    place("delete", "streamreplays", "--all")
    place("delete", "consumergroup/coder", "consumergroup/reviewer", "agentstream/coder")


def noted(ledger: Ledger, group: str) -> Counter[tuple[str, int]]:
    """What a group's consumers have noted, and how often."""
    ledger.read()
    return Counter((n.what, n.number) for n in ledger.notes if n.who.startswith(f"{group}-consumer-"))


def replayed(ledger: Ledger) -> Counter[int]:
    """How often each message was handled as part of a replay."""
    found: Counter[int] = Counter()
    for (what, number), times in noted(ledger, "coder").items():
        if what.startswith("replayed"):
            found[number] += times
    return found


def test_a_bug_fills_the_dead_letters_and_its_fix_is_replayed(crew: Crew, ledger: Ledger) -> None:
    kubectl, agentstream = crew.kubectl, Cli(crew.kubectl)
    began = datetime.now(UTC) - timedelta(seconds=5)
    crew.send(SENT)
    broken, whole = set(range(0, SENT, BUG)), set(range(SENT))

    def dead() -> Any:
        (lag,) = agentstream.read("lag", "coder")["groups"]
        return lag["dead"]

    until(lambda: dead() == BROKEN, 120, despite_errors=True)
    until(lambda: len(noted(ledger, "reviewer")) == SENT)
    others = noted(ledger, "reviewer")

    # one line for all of them: they died of the same
    grouped = agentstream("dlq", "coder")
    assert re.search(rf"\b{BROKEN}\b.*ValueError.*cannot read document <n>", grouped), grouped

    fixed = a_template("python", "buggy.py", image=COUNTING)
    variables = {"LEDGER": "load", "STREAM": "coder", "BUG": "0"}
    fixed["spec"]["containers"][0]["env"] = [{"name": n, "value": v} for n, v in variables.items()]
    kubectl.patch("consumergroup/coder", {"spec": {"template": fixed}})
    until(lambda: "BUG" in kubectl("get", "deployment/coder-consumer", "--output", "yaml"))
    kubectl("rollout", "status", "deployment/coder-consumer", "--timeout=90s", timeout=100)

    said = agentstream("replay", "coder", "--dead", "--dry-run")
    assert f"{BROKEN} of {BROKEN}" in said, said
    assert dead() == BROKEN
    assert not replayed(ledger)

    agentstream("replay", "coder", "--dead", "--because", "the reader of documents is mended", timeout=180)
    until(lambda: replayed(ledger) == Counter(broken), 90)
    until(lambda: dead() == 0)

    # the same for what came since the incident began
    since = began.isoformat(timespec="seconds")
    agentstream("replay", "coder", "--since", since, "--rate", "1000", timeout=180)
    until(lambda: replayed(ledger) == Counter(broken) + Counter(whole), 90)

    assert noted(ledger, "reviewer") == others, "another group has noticed"
    (lag,) = agentstream.read("lag", "coder")["groups"]
    assert (lag["backlog"], lag["dead"]) == (0, 0)
    for name in ("coder", "reviewer"):
        conditions = kubectl.get("consumergroup", name)["status"]["conditions"]
        assert not [c for c in conditions if c["type"] == "MessagesLost" and c["status"] == "True"]
    events = kubectl("get", "events", "--field-selector", "involvedObject.kind=StreamReplay")
    assert "the reader of documents is mended" in events
