"""The rights that docs/operations/install.md names for the operator's own user are enough; none is idle."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from agentstream.protocol import library
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.status import ConditionReason
from support.operator import operator
from support.resources import KEY, a_group, a_replay, a_stream
from support.servers import Server
from support.waiting import until

_PAGE = Path(__file__).parents[2] / "docs" / "operations" / "install.md"
_NAME, _PASSWORD = "agentstream-operator", "of-the-operator"
# what connecting takes, what the operator says outside of functions, and what its question about lag does
_SAID = {
    *("client|setname", "client|setinfo", "client|kill", "select", "info", "hset", "hdel", "hgetall"),
    *("acl|setuser", "acl|deluser", "acl|list", "acl|dryrun", "acl|save", "function|load"),
    *("function|stats", "function|kill", "slowlog|get", "client|list"),
    *("fcall", "fcall_ro", "eval", "publish", "xinfo|consumers", "xread", "xreadgroup", "scan"),
}


def _rules() -> list[str]:
    """The arguments of ACL SETUSER on the page, the password left out."""
    found = re.search(
        rf"^ACL SETUSER {_NAME} on >PASSWORD (.+?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return found[1].split()


def _granted() -> set[str]:
    return {rule[1:] for rule in _rules() if rule.startswith("+")}


def _called() -> set[str]:
    """The commands that functions of the library call."""
    calls = re.findall(
        r"""redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?|\{'(XGROUP)', '(CREATE)'""", library.source()
    )
    containers = {"XGROUP", "XINFO", "MEMORY"}
    return {
        (f"{name or inner}|{sub or part}" if (name or inner) in containers else name).lower()
        for name, sub, inner, part in calls
    }


@pytest.fixture
def limited(server: Server, admin: redis.Redis) -> Iterator[str]:
    """The address of the server for a user with these rights."""
    admin.execute_command("ACL", "SETUSER", _NAME, "reset", "on", f">{_PASSWORD}", *_rules())
    yield f"redis://{_NAME}:{_PASSWORD}@127.0.0.1:{server.port}"
    admin.acl_deluser(_NAME)


def test_everything_that_functions_call_is_granted_and_little_else() -> None:
    assert _granted() == _called() | _SAID


async def test_an_operator_with_these_rights_is_refused_nothing(limited: str, admin: redis.Redis) -> None:
    stream = a_stream(
        producers=["planner"],
        deletionPolicy="Delete",
        retention={"minAge": "1h", "maxLength": 10, "maxBytes": 1048576},
    )
    group = a_group(startFrom="Beginning", deletionPolicy="Delete", delivery={"lease": "2s"})
    async with operator(limited) as op:
        await op.put(stream, group)
        for number in range(12):
            admin.xadd(KEY, {"m": "x"}, id=f"1-{number + 1}")
        admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=3)
        admin.xack(KEY, "coder", "1-1", "1-2")
        for letter in ("1-1", "1-2"):
            admin.xadd(StreamKeys(KEY).dead_letters("coder"), {"m": "{}", "p": "0-0", "origin": letter})
        again, dead, drop = (
            a_replay(name, meta={"uid": str(uuid.uuid4())}, **{"from": {"source": source}, **more})
            for name, source, more in (
                ("again", "Stream", {}),
                ("dead", "DeadLetters", {"select": {"ids": ["1-1"]}}),
                ("drop", "DeadLetters", {"select": {"ids": ["1-2"]}, "action": "Drop"}),
            )
        )
        for replay in (again, dead, drop):
            op.declare(replay)
            await op.event(replay.key, ConditionReason.REPLAY_FINISHED)
            await op.delete(replay)
        await until(lambda: admin.exists(StreamKeys(KEY).gate))
        await op.broker.release_pod(KEY, "coder", Gone("pod"))
        await op.broker.remove_consumers(KEY, "coder", Gone("pod"))
        admin.xgroup_destroy(KEY, "coder")
        await until(lambda: [g["name"] for g in admin.xinfo_groups(KEY)] == ["coder"])
        await op.delete(group)
        await op.delete(stream)

        assert admin.exists(KEY) == 0
    assert [entry for entry in admin.acl_log() if entry["username"] == _NAME] == []
