"""CRDs that are deleted and installed again while the operator runs: new resources are served in seconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.team import Team
from support.apiserver import ROOT, ApiServer
from support.deployed import Deployed, grant
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream

HOME = "agentstream-system"
DEFINITIONS = {
    "all": sorted((ROOT / "crds").glob("*.yaml")),
    "streams": [ROOT / "crds" / "agentstreams.agentstream.dev.yaml"],
    "groups": [ROOT / "crds" / "consumergroups.agentstream.dev.yaml"],
    "replays": [ROOT / "crds" / "streamreplays.agentstream.dev.yaml"],
}
SECONDS = 20.0
"""Within which the operator serves again, on a busy machine; only a comparison with lists takes 300 s."""


def delete(server: ApiServer, files: list[Path]) -> None:
    server.kubectl()("delete", "--timeout=60s", *(f"--filename={file}" for file in files))


async def waits(operator: Deployed) -> bool:
    """Whether it says that it waits for the CRDs."""
    code, text = await operator.probe("/readyz")
    return code == 503 and "there is no CRD of" in text


@pytest.mark.parametrize(
    ("which", "namespaces"),
    [("all", (HOME,)), ("streams", ()), ("groups", (HOME,)), ("replays", ())],
    ids=DEFINITIONS,
)
async def test_resources_of_new_definitions_are_served_within_seconds(
    own_api_server: ApiServer,
    private_server: Server,
    tmp_path: Path,
    which: str,
    namespaces: tuple[str, ...],
) -> None:
    server, team = own_api_server, Team(own_api_server, HOME)
    server.create_namespace(HOME)
    user = grant(server, HOME, namespaces)
    operator = Deployed(server, user, private_server.url, tmp_path, namespaces=namespaces)
    operator.start()
    try:
        await operator.leading()
        before = a_stream("before"), a_group("first", streamRef={"name": "before"})
        team.create(*before)
        await team.ready(*before)

        await asyncio.to_thread(delete, server, DEFINITIONS[which])

        await until(lambda: waits(operator), timeout=SECONDS)
        # restarting would not bring them back
        assert (await operator.probe("/livez"))[0] == 200

        await asyncio.to_thread(server.apply_crds)
        after = a_stream("after"), a_group("second", streamRef={"name": "after"})
        team.create(*after)
        await team.ready(*after, timeout=SECONDS)
        await operator.ready(SECONDS)
        # and their changes are seen, not only what a list showed
        team.change("AgentStream", "after", {"spec": {"producers": ["boss"]}})
        await team.there("Secret", "agentstream-boss")
        assert operator.process is not None
        assert operator.process.poll() is None
    finally:
        operator.kill()


async def test_an_operator_that_came_before_the_definitions_waits_for_them(
    own_api_server: ApiServer, private_server: Server, tmp_path: Path
) -> None:
    server, team = own_api_server, Team(own_api_server, HOME)
    server.create_namespace(HOME)
    await asyncio.to_thread(delete, server, DEFINITIONS["all"])
    operator = Deployed(
        server, grant(server, HOME, (HOME,)), private_server.url, tmp_path, namespaces=(HOME,)
    )
    operator.start()
    try:
        await operator.leading()
        await until(lambda: waits(operator), timeout=SECONDS)
        await asyncio.to_thread(server.apply_crds)
        team.create(a_stream())
        await team.ready(a_stream(), timeout=SECONDS)
        await operator.ready(SECONDS)
        assert "Traceback" not in operator.log
    finally:
        operator.kill()
