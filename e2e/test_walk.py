"""Four incidents, and what the runbook says that is seen of them in console, command line and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from harness.chart import NAME, Installation
from harness.cli import Cli
from harness.console import Console, a_console
from harness.images import COUNTING
from harness.kind import Cluster
from harness.kubectl import Kubectl, Manifest
from harness.manifests import a_group, a_stream, a_template
from harness.shell import CommandFailed
from harness.waiting import until

_ADD = """
for number = 1, tonumber(ARGV[1]) do
    local id = string.format('"id":"%08x-0000-4000-8000-%012x",', number, tonumber(ARGV[2]) + number)
    local head = '{"v":1,"from":"boss","type":"task_request","timestamp":0,'
    redis.call('XADD', KEYS[1], '*', 'm', head .. id .. ARGV[3])
end
"""


class Incident:
    """A namespace in which something is wrong, and all that looks at it.

    Args:
        installation: of the chart.
        kubectl: for the namespace.
        console: the console.
    """

    def __init__(self, installation: Installation, kubectl: Kubectl, console: Console) -> None:
        self.installation = installation
        self.kubectl = kubectl
        self.console = console
        self.agentstream = Cli(kubectl)
        self._sent = 0

    @property
    def team(self) -> str:
        """The namespace."""
        return self.kubectl.namespace

    def begin(self, name: str, delivery: Manifest | None = None, **stream: Any) -> None:
        """Makes a stream and its group with one consumer, which does what payloads say."""
        template = a_template("python", "troubled.py", image=COUNTING)
        template["spec"]["containers"][0]["env"] = [{"name": "STREAM", "value": name}]
        spec = {"template": template, "replicas": 1, "deliver": "All", "delivery": delivery or {}}
        self.kubectl.apply(a_stream(name, producers=["boss"], **stream), a_group(name, name, **spec))
        self.kubectl.ready(f"agentstream/{name}", f"consumergroup/{name}")
        self.kubectl("rollout", "status", f"deployment/{name}-consumer", "--timeout=60s", timeout=70)

    def send(self, name: str, count: int = 1, **payload: Any) -> None:
        """Adds messages, also to a stream that is full."""
        end = f'"to":"{name}","payload":{json.dumps(payload)}}}'
        key = f"{{{self.team}.{name}}}"
        self.installation.redis("EVAL", _ADD, "1", key, str(count), str(self._sent), end)
        self._sent += count

    def lag(self, name: str) -> Any:
        """What the API says of a group."""
        (found,) = self.agentstream.read("lag", name)["groups"]
        return found

    def consuming(self, name: str) -> str:
        """Why the group is consuming, or not."""
        found: str = next(c["reason"] for c in self.lag(name)["conditions"] if c["type"] == "Consuming")
        return found

    def doctor(self) -> str:
        """What `agentstream doctor` prints, whatever it finds, without its columns."""
        return re.sub(" +", " ", self.said("doctor"))

    def said(self, command: str, *arguments: str) -> str:
        """What a command prints, also if it fails."""
        try:
            return self.agentstream(command, *arguments)
        except CommandFailed as failed:
            return failed.output

    def metric(self, series: str, /, **labels: str) -> float | None:
        """A sample of the operator's metrics; None if there is none."""
        (pod,) = self.installation.operator_pods()
        path = f"/api/v1/namespaces/{self.installation.kubectl.namespace}/pods/{pod}:8080/proxy/metrics"
        text = self.kubectl("get", "--raw", path)
        for line in text.splitlines():
            if re.match(rf"{series}[{{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rpartition(" ")[2])
        return None


@pytest.fixture(scope="module")
def incident(cluster: Cluster, place: Kubectl) -> Iterator[Incident]:
    """A namespace with an installation that has a console."""
    installation = Installation(cluster)
    installation.install("queueServer.enabled=true", "queueServer.cliMay=everything")
    with a_console(place) as console:
        yield Incident(installation, place, console)


def test_a_poison_message(incident: Incident) -> None:
    quick = {"maxDeliveries": 2, "backoff": {"initial": "100ms", "max": "100ms"}}
    incident.begin("reader", quick)
    incident.begin("loader", quick)
    incident.send("reader", 3, do="fail", number=7)
    incident.send("reader", 3, do="work")
    incident.send("loader", do="die")
    incident.send("loader", 3, do="work")
    # one ends its consumers: the group says so while it does
    until(lambda: incident.consuming("loader") == "CrashLoop", 90, despite_errors=True)
    assert f"ConsumerGroup {incident.team}/loader CrashLoop: loader-consumer-" in incident.doctor()
    assert f"ConsumerGroup {incident.team}/loader : CrashLoop" in incident.console.page()
    until(lambda: incident.lag("loader")["dead"] == 1, 120, despite_errors=True)
    assert "and none succeeded" in incident.agentstream("dlq", "loader")

    assert incident.lag("reader")["dead"] == 3
    what = f"ConsumerGroup {incident.team}/reader: 3 dead letters"
    assert what in incident.agentstream("lag")
    assert what in incident.agentstream("lag", "reader")
    assert re.search(
        r"\b3 +MaxDeliveries +ValueError: cannot read document <n>", incident.said("dlq", "reader")
    )
    assert "reader : 3 dead letters" in incident.console.page()
    assert "cannot read document <n>" in incident.console.page(
        f"/console/groups/{incident.team}/reader/deadletters"
    )
    labels = {"namespace": incident.team, "group": "reader", "outcome": "dead"}
    assert incident.metric("agentstream_group_settled_total", **labels) == 3
    # the others were handled beside it, and behind it
    until(lambda: incident.lag("loader")["backlog"] == incident.lag("reader")["backlog"] == 0, 60)


def test_a_full_stream(incident: Incident) -> None:
    incident.begin("small", retention={"maxLength": 100})
    incident.send("small", 100, do="work", seconds=600)
    until(lambda: "full" in incident.agentstream("lag", "small"), 30)
    what = f"AgentStream {incident.team}/small: full: 100 messages are unsettled"
    assert what in incident.agentstream("lag")
    assert "the group small is furthest behind" in incident.doctor()
    assert "small : full 100 messages are unsettled" in incident.console.page()
    labels = {"namespace": incident.team, "stream": "small"}
    until(lambda: incident.metric("agentstream_stream_admission_open", **labels) == 0)
    with pytest.raises(CommandFailed) as refused:
        incident.agentstream("send", "small", "{}", "--timeout", "2s")
    assert "`agentstream lag` names who is behind" in refused.value.output

    incident.kubectl.patch("agentstream/small", {"spec": {"retention": {"maxLength": 1000}}})
    until(lambda: incident.agentstream("send", "small", "{}", "--timeout", "2s"), 30, despite_errors=True)
    until(lambda: f"{incident.team}/small: full" not in incident.agentstream("lag"))


def test_a_consumer_that_hangs(incident: Incident) -> None:
    incident.begin("caller")
    incident.begin("stopped")
    incident.send("caller", do="wait")
    incident.send("stopped", do="work", seconds=5)
    (pod,) = until(lambda: incident.kubectl.pods("stopped"))
    until(lambda: incident.lag("stopped")["pending"] == 1)
    stop(incident, pod)
    # no settlement and no renewal for a minute
    until(lambda: incident.consuming("stopped") == "NoProgress", 90)
    assert f"ConsumerGroup {incident.team}/stopped: NoProgress: messages wait" in incident.agentstream("lag")
    assert "/stopped NoProgress: " in incident.doctor()
    assert "stopped : NoProgress" in incident.console.page()
    labels = {"namespace": incident.team, "name": "stopped", "type": "Consuming", "status": "False"}
    until(lambda: incident.metric("agentstream_condition", **labels) == 1)
    incident.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    until(lambda: incident.lag("stopped")["backlog"] == 0, 60)

    # a handler that waits for what never answers is no alarm, and can be seen
    until(lambda: incident.consuming("caller") == "HandlersRunning", 60)
    assert re.search(r"\bcaller\b.*\bHandlersRunning\b", incident.agentstream("lag", "caller"))
    assert "HandlersRunning" in incident.console.page(f"/console/groups/{incident.team}/caller")
    assert "/caller " not in incident.doctor()


def test_a_server_that_is_away(incident: Incident) -> None:
    incident.begin("patient")
    incident.send("patient", 3, do="work", seconds=600)
    until(lambda: incident.lag("patient")["backlog"] == 3)
    redis = f"statefulset/{NAME}-redis"
    incident.installation.kubectl("scale", redis, "--replicas=0")
    try:
        until(lambda: "does not answer" in incident.said("lag"))
        assert "Redis or Valkey does not answer: " in incident.said("lag")
        until(lambda: re.search(r"wrong server does not answer: ", incident.doctor()))
        page = incident.console.page()
        assert "Redis or Valkey : does not answer" in page or "Redis or Valkey: does not answer" in page
        # once, and not again for each resource
        assert page.count("Check the server") == 1
        until(lambda: incident.metric("agentstream_redis_up") == 0)
    finally:
        incident.installation.kubectl("scale", redis, "--replicas=1")
    until(lambda: incident.lag("patient")["backlog"] == 3, 90, despite_errors=True)
    until(lambda: incident.metric("agentstream_redis_up") == 1)


def stop(incident: Incident, pod: str) -> None:
    """Has the processes of a pod stand still, as by SIGSTOP."""
    found = incident.kubectl.get("pod", pod)
    uid = found["metadata"]["uid"].replace("-", "[-_]")
    stopping = (
        f"for p in $(pgrep -f troubled.py); do grep -q '{uid}' /proc/$p/cgroup && kill -STOP $p; done; true"
    )
    incident.installation.cluster.on_node(found["spec"]["nodeName"], "sh", "-c", stopping)
