"""What a tenant puts into a resource harms that resource alone: the others are served as ever."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import redis

from cluster.team import Json, Team
from support.apiserver import ApiServer
from support.deployed import Deployed, grant
from support.servers import Server
from unit.resources.manifests import a_group, a_stream, a_template

HOME, TENANT, TIMEOUT = "agentstream-system", "tenant", 60.0
PLACEHOLDER = '"?"'


def nested(levels: int, *, lists: bool = False) -> str:
    """JSON that is so many levels deep."""
    opening, closing = ("[", "]") if lists else ('{"a":', "}")
    return f"{opening * levels}{'' if lists else 1}{closing * levels}"


def in_template(value: str) -> str:
    """A ConsumerGroup with a value in a field of its template that the operator does not know."""
    template = {"spec": {**a_template()["spec"], "junk": "?"}}
    return json.dumps(a_group("poison", template=template)).replace(PLACEHOLDER, value)


def in_schema(value: str) -> str:
    """An AgentStream with a value in a contract."""
    contracts = [{"type": "event", "schema": {"type": "object", "x": "?"}}]
    return json.dumps(a_stream("poison", contracts=contracts)).replace(PLACEHOLDER, value)


INVALID = {
    "template-100": in_template(nested(100)),
    "template-900": in_template(nested(900)),
    "template-3000": in_template(nested(3_000)),
    "template-lists": in_template(nested(3_000, lists=True)),
    "schema-280": in_schema(nested(280)),
    "schema-900": in_schema(nested(900, lists=True)),
    "a-mb-of-maps": in_template(f"[{','.join(['{}'] * 330_000)}]"),
    "a-mb-of-text": in_template(json.dumps("x" * 1_000_000)),
    "a-mb-in-a-schema": in_schema(f"[{','.join(['{}'] * 330_000)}]"),
}
TAKEN = {
    "half-a-pair": in_template('"\\ud800"'),
    "huge-number": in_template("1e300"),
    "odd-keys": in_template('{"": {"\\u0000": null, "__proto__": [[]], "%s{0}": true}}'),
    "wrong-types": in_template('[null, [], {}, "", 0, -0.0, 1.5, false]'),
}
"""What the API server takes, and the operator works with or leaves to the API server."""


def poison(team: Team, directory: Path) -> None:
    """Creates all of it."""
    for name, manifest in (INVALID | TAKEN).items():
        file = directory / f"{name}.json"
        file.write_text(manifest.replace('"name": "poison"', f'"name": "{name}"'))
        team.kubectl("create", "--validate=false", f"--filename={file}")


async def is_served(team: Team, admin: redis.Redis, name: str) -> None:
    """Waits until a new stream and group are in effect, and a message has the group scaled up from zero."""
    stream = a_stream(name, producers=["boss"])
    group = a_group(f"{name}-g", streamRef={"name": name}, template=a_template(), autoscaling={})
    team.create(stream, group)
    await team.ready(stream, group, timeout=TIMEOUT)
    deployment = await team.there("Deployment", f"{name}-g-consumer")
    assert deployment["spec"]["replicas"] == 0
    admin.xadd(f"{{{TENANT}.{name}}}", {"m": "{}"})

    def has_one(found: Json | None) -> bool:
        return found is not None and found["spec"]["replicas"] == 1

    await team.until("Deployment", f"{name}-g-consumer", has_one, TIMEOUT)


async def test_whatever_a_resource_holds_the_others_are_served_and_it_says_so(
    own_api_server: ApiServer, private_server: Server, tmp_path: Path
) -> None:
    # the test reads the statuses itself
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    namespaces = (HOME, TENANT)
    hostile, team = (Team(own_api_server, namespace) for namespace in namespaces)
    for namespace in namespaces:
        own_api_server.create_namespace(namespace)
    user = grant(own_api_server, HOME, ())
    operator = Deployed(own_api_server, user, private_server.url, tmp_path)
    operator.start()
    try:
        await operator.leading()
        with private_server.admin() as admin:
            await is_served(team, admin, "before")
            poison(hostile, tmp_path)
            await is_served(team, admin, "beside")
            for name, manifest in INVALID.items():
                kind = "ConsumerGroup" if "streamRef" in manifest[:500] else "AgentStream"
                await hostile.says(kind, name, "False", "Invalid", timeout=TIMEOUT)
            # the operator that starts meets all of it
            operator.kill()
            operator.start()
            await operator.ready()
            await is_served(team, admin, "after")
        assert [found for found in operator.complaints() if "RecursionError" in found] == []
        assert (await operator.probe("/livez"))[0] == 200
    finally:
        sys.setrecursionlimit(limit)
        operator.kill()
