"""What an agent may do on the server: its ACL rules, the probes that verify them, and its route.

Least privilege is by selectors (https://valkey.io/topics/acl/#selectors), one for each kind of key: what is
granted for one kind never holds for another. A flat union would let a producer overwrite its stream with SET
and a consumer add to what it reads. Functions run with their caller's rights: their commands are granted.

The server cannot restrict the name of a group and the arguments of XADD: agents that distrust each other need
streams of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.keys import (
    StreamKeys,
    cancel_channel,
    notify_channel,
    nudge_channel,
    routes_key,
    user_name,
)
from agentstream.protocol.routes import Consumes, Produces, Route
from agentstream_operator.plan.actions import Probe, SetUser

_EVERYONE = ("-@all", "+ping", "+hello", "+time", "+client|setname", "+client|setinfo")
_CONSUMER_FUNCTIONS = (
    "as1_settle",
    "as1_retry",
    "as1_dead_letter",
    "as1_sweep",
    "as1_take",
    "as1_begin",
    "as1_renew",
    "as1_release",
    "as1_turn",
    "as1_once",
    "as1_end_once",
    "as1_originals",
)


@dataclass(frozen=True, slots=True)
class AgentUse:
    """Everything that the resources let an agent do."""

    namespace: str
    agent: str
    produces: tuple[Produces, ...] = ()
    consumes: tuple[Consumes, ...] = ()


def set_user(
    use: AgentUse, installation: str, password_hashes: tuple[str, ...], *, disconnect: bool = False
) -> SetUser:
    """Builds the action that sets the agent's user with these passwords (SHA-256 in hex)."""
    return SetUser(
        name=user_name(installation, use.namespace, use.agent),
        rules=rules(use, installation),
        password_hashes=password_hashes,
        probes=expectations(use, installation),
        disconnect=disconnect,
    )


def route(use: AgentUse) -> Route:
    """Builds the route by which the agent finds its streams."""
    return Route(
        produces=tuple(sorted(set(use.produces), key=msgspec.structs.astuple)),
        consumes=tuple(sorted(set(use.consumes), key=msgspec.structs.astuple)),
    )


def rules(use: AgentUse, installation: str) -> tuple[str, ...]:
    """Builds the arguments of ACL SETUSER after the name; equal for equal uses."""
    what = route(use)
    selectors = _anybody(use, installation)
    for produces in what.produces:
        selectors += _producer(use.agent, produces)
    for consumes in what.consumes:
        selectors += _consumer(consumes)
    if what.consumes:
        selectors += _replier(use.namespace)
    return ("reset", "on", "resetchannels", *_EVERYONE, *dict.fromkeys(selectors))


def _selector(keys: str, *commands: str) -> str:
    return f"({keys} {' '.join(f'+{command}' for command in commands)})"


def _anybody(use: AgentUse, installation: str) -> list[str]:
    """Grants every agent to look up routes and names, to notify, and to request in its namespace."""
    namespace, agent = use.namespace, use.agent
    notified = [notify_channel(installation, namespace, addressee) for addressee in (agent, BROADCAST)]
    nudged = nudge_channel(installation, namespace, agent)
    cancelled = cancel_channel(installation, namespace, agent)
    anybody = [each(installation, namespace, "*") for each in (notify_channel, cancel_channel)]
    return [
        _selector(f"%R~{routes_key(installation, namespace)}", "hget", "hkeys"),
        _selector(f"&{' &'.join((*anybody, nudged))}", "publish"),
        _selector(f"&{' &'.join((*notified, nudged, cancelled))}", "subscribe", "unsubscribe"),
        _selector(f"%RW~{{{namespace}.{agent}}}:reply:*", "xread", "xtrim", "unlink"),
    ]


def _replier(namespace: str) -> list[str]:
    """Grants who consumes to answer: the token in the key is what that needs, and no pattern knows it."""
    return [
        # a function's key must be readable, too
        _selector(f"%RW~{{{namespace}.*}}:reply:*", "fcall|as1_reply"),
        _selector(f"%W~{{{namespace}.*}}:reply:*", "xadd", "pexpire"),
    ]


def _producer(agent: str, produces: Produces) -> list[str]:
    keys = StreamKeys(produces.key)
    selectors = [
        _selector(f"%RW~{keys.stream}", "xadd", "xlen", "fcall|as1_add"),
        _selector(f"%RW~{keys.sent('*')} %RW~{keys.once(agent, '*', '*')}", "get", "set"),
        _selector(f"%R~{keys.gate}", "get"),
        _selector(f"%R~{keys.stats('*')}", "hget"),
        _selector(f"%RW~{keys.order}", "hget", "hset"),
        _selector(f"%R~{keys.contracts}", "hgetall"),
    ]
    if produces.broadcast:
        selectors += [
            _selector(f"%R~{keys.stream}", "xinfo|groups", "xpending", "fcall_ro|as1_receipt"),
            _selector(f"%R~{keys.parked('*')}", "hget"),
            _selector(f"%RW~{keys.receipts}", "zadd", "zscore"),
        ]
    return selectors


def _consumer(consumes: Consumes) -> list[str]:
    keys, group = StreamKeys(consumes.key), consumes.group
    reading = ("xreadgroup", "xack", "xclaim", "xautoclaim", "xpending", "xinfo|consumers", "xrange")
    functions = tuple(f"fcall|{name}" for name in _CONSUMER_FUNCTIONS)
    return [
        # both streams in one selector, or a read over the two is refused
        _selector(f"%RW~{keys.stream} %RW~{keys.retry(group)}", *reading, *functions),
        _selector(f"%W~{keys.retry(group)}", "xadd", "xdel"),
        _selector(f"%W~{keys.dead_letters(group)}", "xadd"),
        _selector(f"%RW~{keys.delay(group)}", "zadd", "zrem", "zrange"),
        _selector(f"%RW~{keys.stats(group)}", "hget", "hset", "hincrby"),
        _selector(f"%RW~{keys.parked(group)}", "hget", "hset", "hdel"),
        _selector(
            f"%RW~{keys.seen(group)} %RW~{keys.earlier(group)}",
            *("hget", "hset", "hlen", "rename", "unlink"),
        ),
        _selector(f"%RW~{keys.done(group, '*')}", "get", "set", "del"),
        _selector(f"%R~{keys.contracts}", "hgetall"),
        *([_selector(f"%R~{keys.receipts}", "zscore")] if consumes.broadcast else ()),
    ]


def expectations(use: AgentUse, installation: str) -> tuple[Probe, ...]:
    """Builds the ACL DRYRUN probes of the agent's user: what must be allowed, and what must not."""
    foreign = "{agentstream-probe}"
    found = [
        Probe(("HGET", routes_key(installation, use.namespace), use.agent), allowed=True),
        Probe(("FLUSHALL",), allowed=False),
        Probe(("EVAL", "return 1", "0"), allowed=False),
        Probe(("XADD", foreign, "*", "m", ""), allowed=False),
    ]
    what = route(use)
    produced = {produces.key for produces in what.produces}
    consumed = {consumes.key for consumes in what.consumes}
    for key in sorted(produced):
        found += (
            Probe(("FCALL", "as1_add", "1", key), allowed=True),
            Probe(("SET", key, ""), allowed=False),
            Probe(("XTRIM", key, "MAXLEN", "0"), allowed=False),
        )
        if key not in consumed:
            found.append(Probe(("XRANGE", key, "-", "+"), allowed=False))
    for consumes in what.consumes:
        keys, group = StreamKeys(consumes.key), consumes.group
        streams = (keys.stream, keys.retry(group))
        found += (
            Probe(("XREADGROUP", "GROUP", group, "c", "STREAMS", *streams, ">", ">"), allowed=True),
            Probe(("FCALL", "as1_settle", "1", keys.stream), allowed=True),
            Probe(("XADD", keys.dead_letters(group), "*", "m", ""), allowed=True),
            Probe(("XDEL", keys.stream, "0-1"), allowed=False),
            Probe(("XGROUP", "DESTROY", keys.stream, group), allowed=False),
        )
        if keys.stream not in produced:
            found.append(Probe(("XADD", keys.stream, "*", "m", ""), allowed=False))
    return tuple(dict.fromkeys(found))
