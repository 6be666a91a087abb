"""The resources that are known, and who depends on whom."""

from __future__ import annotations

from agentstream_operator.cluster.port import Owner, Unreadable
from agentstream_operator.plan.agents import AgentName
from agentstream_operator.reconcile.state.index import ResourceIndex, agent_key
from agentstream_operator.resources.meta import ResourceKey
from support.resources import TEMPLATE, a_group, a_stream

TASKS = a_stream().key
CODER = agent_key(AgentName("team", "coder"))
PLANNER = agent_key(AgentName("team", "planner"))


def store_of(*resources: object, allowed: tuple[str, ...] = ()) -> ResourceIndex:
    store = ResourceIndex(allowed)
    for resource in resources:
        store.put(resource)
    return store


def test_a_stream_concerns_its_groups_their_agents_and_its_producers() -> None:
    store = store_of(a_group())
    assert store.put(a_stream(producers=["planner"])) == {a_group().key, CODER, PLANNER}


def test_a_group_concerns_its_stream_and_its_agent() -> None:
    assert store_of(a_stream()).put(a_group()) == {TASKS, CODER}
    assert store_of().put(a_group()) == {CODER}


def test_a_group_of_a_broadcast_stream_that_comes_or_goes_concerns_the_producers() -> None:
    news = a_stream("news", broadcast=True, producers=["planner"])
    store = store_of(a_stream(producers=["other"]), news)
    group = a_group(stream="news")
    assert store.put(group) == {news.key, CODER, PLANNER}
    assert store.put(a_group(stream="news", suspend=True)) == {news.key, CODER}
    assert store.put(a_group(stream="news", group="g")) == {news.key, CODER, PLANNER}
    assert store.remove(group.key) == {news.key, CODER, PLANNER}


def test_who_was_named_before_a_change_is_concerned_too() -> None:
    store = store_of(a_stream(producers=["planner"]))
    assert store.put(a_stream(producers=["other"])) == {PLANNER, agent_key(AgentName("team", "other"))}


def test_rivals_concern_each_other() -> None:
    older, younger = a_stream("older", age=2, key="{team.x}"), a_stream("younger", age=1, key="{team.x}")
    store = store_of(older)
    assert store.put(younger) == {older.key}
    assert store.winner(younger) is older
    assert store.remove(older.key) == {younger.key}
    assert store.winner(younger) is younger


def test_who_may_not_have_a_key_does_not_win_it() -> None:
    thief, owner = a_stream("thief", "other", age=9, key="{team.x}"), a_stream("x")
    store = store_of(thief, owner)
    assert store.winner(thief) is owner
    assert store_of(thief).winner(thief) is None
    assert store_of(thief, owner, allowed=("*", "{team.*")).winner(owner) is owner


def test_the_older_of_two_groups_has_its_place() -> None:
    older, younger = a_group("older", group="g", age=2), a_group("younger", group="g", age=1)
    other = a_group("other")
    store = store_of(younger, other)
    assert store.group_winner(younger) is younger
    assert store.put(older) >= {younger.key}
    assert store.group_winner(younger) is older
    assert [declared.name for declared in store.declared(TASKS)] == ["g", "other"]
    store.remove(older.key)
    assert store.group_winner(younger) is younger
    assert set(store.readers_of(TASKS)) == {younger.key, other.key}


def test_agents_are_known_as_long_as_somebody_names_them() -> None:
    store = store_of(a_stream(producers=["planner"], age=1), a_group(agent="planner"))
    planner = AgentName("team", "planner")
    assert [resource.key for resource in store.named_by(planner)] == [TASKS, a_group().key]
    assert set(store.keys()) == {TASKS, a_group().key, PLANNER}
    store.remove(TASKS)
    store.remove(a_group().key)
    assert not store.agents
    assert store.named_by(planner) == []


def test_removing_what_is_not_known_concerns_nobody() -> None:
    assert store_of().remove(ResourceKey("AgentStream", "team", "ghost")) == set()


def test_a_stream_that_vanished_while_it_was_looked_at_claims_nothing_of_others() -> None:
    stream, store = a_stream(), store_of(a_stream())
    store.remove(stream.key)
    assert store.winner(stream) is stream


def test_what_cannot_be_read_is_remembered_until_it_is_gone() -> None:
    store = store_of(a_stream())
    store.unreadable(Unreadable(Owner(TASKS, "1"), 1, "why"))
    assert store.unreadable_namespaces == {"team"}
    assert store.get(TASKS) is not None
    store.remove(TASKS)
    assert store.unreadable_namespaces == set()


def test_what_can_be_read_again_is_no_longer_unreadable() -> None:
    store = store_of()
    store.unreadable(Unreadable(Owner(TASKS, "1"), 1, "why"))
    store.put(a_stream())
    assert store.unreadable_namespaces == set()


def test_the_oldest_group_with_a_workload_works_for_those_without() -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, age=3)
    second = a_group("second", agent="coder", template=TEMPLATE, age=2)
    guest = a_group("guest", agent="coder", age=9)
    stranger = a_group("stranger")
    store = store_of(host, second, guest, stranger, a_stream(producers=["coder"]))
    assert store.served_by(host) == (host, guest)
    assert store.served_by(second) == (second,)
    assert store.served_by(stranger) == (stranger,)


def test_the_oldest_group_that_names_a_deployment_scales_it() -> None:
    ref = {"name": "mine"}
    older, younger = (
        a_group(name, deploymentRef=ref, age=age) for name, age in (("older", 2), ("younger", 1))
    )
    elsewhere = a_group("elsewhere", "other", deploymentRef=ref, age=9)
    bystander = a_group("bystander", deploymentRef={"name": "another"}, age=9)
    store = store_of(younger, elsewhere, bystander)
    assert store.scales_deployment(younger) is younger
    assert store.put(older) >= {younger.key}
    assert [store.scales_deployment(group) for group in (older, younger)] == [older, older]
    assert store.put(a_group("older", age=2)) >= {younger.key}
    assert store.scales_deployment(younger) is younger


def test_a_group_that_names_no_deployment_scales_none() -> None:
    assert store_of(a_group(template=TEMPLATE)).scales_deployment(a_group(template=TEMPLATE)) is None
