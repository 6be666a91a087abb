"""The runbook's commands, as they are written there, mend what others did."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest
import redis

from agentstream_operator.resources.meta import HEAL_ANNOTATION
from cluster.team import Team, said
from support.helm import ROOT
from support.kubectl import Kubectl
from support.servers import Server
from unit.resources.manifests import a_group, a_stream

RUNBOOK = (ROOT / "docs/operations/runbook.md").read_text()


def commands(alert: str) -> list[str]:
    """The commands of an alert's section, in order."""
    _, _, section = RUNBOOK.partition(f"## {alert}\n")
    section = section.partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [
        command.strip() for block in blocks for command in re.split(r"^\s*\$ ", block, flags=re.MULTILINE)[1:]
    ]


def typed(kubectl: Kubectl, command: str, name: str) -> str:
    """Runs a command of the runbook. Returns what it printed."""
    line = re.sub(r"\bTEAM\b", kubectl.namespace, re.sub(r"\bNAME\b", name, command))
    path = f"{kubectl.program.parent}:{os.environ['PATH']}"
    environment = {"KUBECONFIG": str(kubectl.kubeconfig), "HOME": str(kubectl.cache), "PATH": path}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def moved_ahead(server: redis.Redis, key: str, group: str) -> None:
    last = server.xadd(key, {"m": "x"})
    server.execute_command("XCLAIM", key, group, "x", 0, "0-1", "LASTID", last)


def of_the_future(server: redis.Redis, key: str, _group: str) -> None:
    server.xadd(key, {"m": "x"}, id="32503680000000-0")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(
    ("kind", "condition", "attack"),
    [
        ("ConsumerGroup", "MessagesLost", moved_ahead),
        ("AgentStream", "IdsInTheFuture", of_the_future),
    ],
)
async def test_what_others_did_is_mended_as_the_runbook_says(  # noqa: PLR0917 - fixtures, and a case
    team: Team,
    unique: str,
    shared_broker: Server,
    kind: str,
    condition: str,
    attack: Callable[[redis.Redis, str, str], None],
) -> None:
    resources = (a_stream(unique, producers=["boss"]), a_group(unique, streamRef={"name": unique}))
    team.create(*resources)
    await team.ready(*resources)
    look, heal, wait, remove = commands(f"AgentStream{condition}")
    assert unique not in typed(team.kubectl, look, unique)
    with shared_broker.admin() as server:
        attack(server, f"{{{team.namespace}.{unique}}}", unique)
    await team.until(kind, unique, lambda found: said(found, condition)[0] == "True")
    assert f"{team.namespace}/{unique}" in typed(team.kubectl, look, unique)
    for command in (heal, wait, remove):
        typed(team.kubectl, command, unique)
    found = team.get(kind, unique)
    assert said(found, condition)[0] == "False"
    assert found is not None
    assert HEAL_ANNOTATION not in found["metadata"].get("annotations", {})
