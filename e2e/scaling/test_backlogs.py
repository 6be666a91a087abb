"""Backlogs that the server itself does not know, or counts wrong: a group wakes and sleeps as it should."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.crew import Crew
from harness.kubectl import in_effect
from harness.manifests import a_stream
from harness.waiting import until

FOLLOWING = {"minReplicas": 0, "maxReplicas": 10, "targetBacklog": 100, "scaleDownAfter": "2s"}

# Leaves behind what old servers do when they trim what was not read: they think that fewer were read.
_TRIM = """
redis.call('XTRIM', KEYS[1], 'MAXLEN', 50)
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '$', 'ENTRIESREAD', 20)
return redis.call('XINFO', 'GROUPS', KEYS[1])
"""

Tell = Callable[..., None]


def settle(crew: Crew, tell: Tell, case: str, since: float) -> None:
    """Ends a case: everything is handled, once, and then there are no consumers."""
    seconds = crew.drained() - since
    crew.asleep()
    counts = crew.counts()
    tell(case, seconds, "all are handled; then there are no consumers", counts)
    assert not counts.lost
    assert not counts.twice
    assert crew.pending() == {}


def test_a_group_made_in_the_middle_of_a_stream(crew: Crew, tell: Tell) -> None:
    crew.kubectl.apply(a_stream(crew.name))
    crew.kubectl.ready(f"agentstream/{crew.name}")
    # what is there already, the group is not to have
    _, middle = (crew.redis("XADD", crew.key, "*", "m", "{}")[0] for _ in range(2))
    crew.redis("XGROUP", "CREATE", crew.key, crew.name, middle)
    crew.send(100)
    assert not crew.lag(), "the server knows it"
    since = time.time()
    crew.declare(autoscaling=FOLLOWING)
    settle(crew, tell, "lag NULL: group at a mid id, 100 waiting", since)


def test_an_unread_entry_is_deleted(crew: Crew, tell: Tell) -> None:
    crew.declare(autoscaling=FOLLOWING, suspend=True)
    crew.send(50)
    unread = crew.redis("XADD", crew.key, "*", "m", "{}")[0]
    crew.send(50)
    crew.redis("XDEL", crew.key, unread)
    assert not crew.lag(), "the server knows it"
    since = time.time()
    crew.patch(suspend=False)
    settle(crew, tell, "lag NULL: unread entry deleted, 100 waiting", since)


def test_a_lag_that_is_none(crew: Crew, tell: Tell) -> None:
    crew.declare(autoscaling=FOLLOWING)
    crew.send(100)
    crew.drained()
    assert crew.redis("EVAL", _TRIM, "1", crew.key, crew.name)[-1] == "80"
    since = time.time()
    crew.asleep()
    seconds = time.time() - since
    crew.gone()
    # nothing but a message wakes it
    until(lambda: crew.kubectl.get("consumergroup", crew.name)["status"].get("backlog") == 0)
    before = crew.changes()[-1]
    number = crew.send()
    crew.begun(number)
    assert next(c for c in crew.changes(before.at) if c.wanted).at > crew.accepted[number]
    tell("phantom lag after a trim, all read", seconds, "there are no consumers; a message wakes them")
    settle(crew, tell, "phantom lag after a trim, all read", crew.accepted[number])
    # for whoever else goes by it
    until(lambda: crew.lag() == "0", 30)


def test_messages_that_a_dead_consumer_has(crew: Crew, tell: Tell) -> None:
    crew.declare(autoscaling=FOLLOWING, suspend=True, delivery={"lease": "2s"})
    crew.send(50)
    crew.redis("XREADGROUP", "GROUP", crew.name, "dead.1", "COUNT", "50", "STREAMS", crew.key, ">")
    assert crew.pending() == {"dead.1": 50}
    assert crew.lag() == "0"
    since = time.time()
    crew.patch(suspend=False)
    settle(crew, tell, "50 messages with a dead consumer", since)


def test_a_stream_without_its_group(crew: Crew, tell: Tell) -> None:
    crew.declare(autoscaling=FOLLOWING)
    crew.send(100)
    crew.drained()
    crew.asleep()
    crew.gone()
    # what it settled since its last checkpoint it would do again
    until(lambda: crew.checkpoint() == crew.redis("XREVRANGE", crew.key, "+", "-", "COUNT", "1")[0])
    since = time.time()
    crew.redis("XGROUP", "DESTROY", crew.key, crew.name)
    until(lambda: crew.redis("XINFO", "GROUPS", crew.key))
    until(lambda: in_effect(crew.kubectl.get("consumergroup", crew.name)))
    back = time.time()
    number = crew.send()
    crew.begun(number)
    woken = next(change.at for change in crew.changes(since) if change.wanted)
    assert woken > crew.accepted[number], "the stream's length is nobody's backlog"
    tell("stream without its group", back - since, "the group is there again")
    settle(crew, tell, "stream without its group", crew.accepted[number])
