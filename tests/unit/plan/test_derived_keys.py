"""No accepted key of a stream, nor any key derived from it, is under the key patterns of another's agents."""

from __future__ import annotations

import inspect
from fnmatch import fnmatchcase
from typing import NamedTuple

from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agentstream.protocol.keys import DERIVED, StreamKeys, reply_key, routes_key
from agentstream.protocol.routes import Consumes, Produces
from agentstream_operator.plan.access import AgentUse, rules
from agentstream_operator.resources.agentstream import StreamKey

INSTALLATION = "agentstream"
_stream_key = TypeAdapter(StreamKey)


class Seen(NamedTuple):
    """A stream as two tenants' resources may declare it, and who uses it."""

    key: str
    namespace: str
    agent: str
    group: str


def kinds() -> dict[str, int]:
    """The members of StreamKeys that derive a key, with the number of their arguments."""
    found = {}
    for name, member in inspect.getmembers(StreamKeys):
        if isinstance(member, property) and name not in ("base", "stream"):
            found[name] = 0
        elif inspect.isfunction(member) and not name.startswith("_"):
            found[name] = len(inspect.signature(member).parameters) - 1
    return found


KINDS = kinds()


def derived(key: str, *arguments: str) -> list[str]:
    """Every key that is derived from a stream's."""
    keys = StreamKeys(key)
    return [
        getattr(keys, name)(*arguments[:count]) if count else getattr(keys, name)
        for name, count in KINDS.items()
    ]


def patterns(use: AgentUse) -> list[str]:
    """The key patterns of an agent's ACL user."""
    words = (word for rule in rules(use, INSTALLATION) for word in rule.strip("()").split())
    return [word.partition("~")[2] for word in words if word.startswith("%")]


def accepted(key: str) -> bool:
    try:
        _stream_key.validate_python(key)
    except ValidationError:
        return False
    return True


# names that are words of derived keys are the hard ones
labels = st.one_of(
    st.sampled_from((*DERIVED, "a", "b", "t")), st.from_regex(r"[a-z0-9]{1,3}", fullmatch=True)
)
segments = st.one_of(labels, st.text("a.:-_", max_size=3))
tails = st.lists(segments, max_size=4).map(lambda parts: "".join(f":{part}" for part in parts))
stream_keys = st.one_of(
    st.builds("{{{}.{}}}{}".format, st.sampled_from("ab"), labels, tails),
    st.builds("{}{}".format, labels, tails),
    st.builds("{}{{{}}}{}".format, labels, segments.filter(bool), tails),
    st.from_regex(r"[A-Za-z0-9._:{}-]{1,12}", fullmatch=True),
).filter(accepted)
seen = st.builds(Seen, stream_keys, st.sampled_from("ab"), labels, labels)
tokens = st.text("ab:{}.-", max_size=6)


def test_the_list_of_derived_words_has_every_kind_of_key() -> None:
    key = "{a.t}"
    found = {name.removeprefix(f"{key}:").partition(":")[0] for name in derived(key, "x", "y", "z")}
    found.add(reply_key("a", "t", "x").removeprefix(f"{key}:").partition(":")[0])
    assert found == set(DERIVED)


@given(seen, seen, tokens)
@example(Seen("{t.tasks}", "t", "planner", "g"), Seen("{t.tasks}:once", "t", "x", "y"), "")
@example(Seen("{t.tasks}", "t", "dlq", "g"), Seen("{t.tasks}:once", "t", "dlq", "y"), "")
@example(Seen("{t.tasks}", "t", "planner", "g"), Seen("{t.tasks}:sent", "t", "x", "y"), "")
@example(Seen("{t.tasks}", "t", "planner", "g"), Seen("{t.coder}:reply", "t", "x", "y"), "")
@example(Seen("{t.tasks}", "t", "planner", "retry"), Seen("{t.tasks}:done", "t", "x", "y"), "")
def test_no_pattern_of_one_streams_agents_reaches_keys_of_another(
    mine: Seen, theirs: Seen, token: str
) -> None:
    assume(accepted(mine.key) and accepted(theirs.key))
    assume(StreamKeys(mine.key).base != StreamKeys(theirs.key).base)
    use = AgentUse(
        mine.namespace,
        mine.agent,
        (Produces("s", mine.key, broadcast=True),),
        (Consumes("s", mine.key, mine.group, broadcast=True),),
    )
    keys = [theirs.key, *derived(theirs.key, theirs.group, theirs.agent, token)]
    for pattern in patterns(use):
        assert not [key for key in keys if fnmatchcase(key, pattern)], pattern


@given(labels, labels, labels, labels, tokens)
def test_no_pattern_of_an_agent_reaches_what_another_group_or_sender_has_on_the_same_stream(
    agent: str, other: str, group: str, rival: str, token: str
) -> None:
    assume(agent != other and group != rival)
    keys, produces = StreamKeys("{a.tasks}"), (Produces("tasks", "{a.tasks}"),)
    producer = patterns(AgentUse("a", agent, produces))
    consumer = patterns(AgentUse("a", agent, (), (Consumes("tasks", "{a.tasks}", group),)))
    assert not [p for p in producer if fnmatchcase(keys.once(other, token, token), p)]
    own = (keys.retry, keys.delay, keys.dead_letters, keys.stats, keys.parked, keys.seen, keys.earlier)
    for theirs in (*(kind(rival) for kind in own), keys.done(rival, token)):
        assert not [p for p in consumer if fnmatchcase(theirs, p)], theirs


@given(seen, st.sampled_from("ab"), labels)
@example(Seen("agentstream:agentstream:b:routes", "a", "x", "y"), "b", "x")
def test_no_pattern_reaches_the_operators_own_keys(mine: Seen, namespace: str, agent: str) -> None:
    assume(accepted(mine.key))
    use = AgentUse(mine.namespace, agent, (Produces("s", mine.key),), (Consumes("s", mine.key, mine.group),))
    routes = routes_key(INSTALLATION, namespace)
    reaching = [pattern for pattern in patterns(use) if fnmatchcase(routes, pattern)]
    assert reaching == ([routes] if namespace == mine.namespace else [])
    assert not [pattern for pattern in patterns(use) if fnmatchcase(StreamKeys(mine.key).meta, pattern)]
