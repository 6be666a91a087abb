"""Equal uses give equal rules, each kind of key has a selector of its own, and probes follow from both."""

from __future__ import annotations

from agentstream.protocol.routes import Consumes, Produces, Route
from agentstream_operator.plan.access import AgentUse, expectations, route, rules, set_user
from agentstream_operator.plan.actions import Probe

TASKS = Produces("tasks", "{a.tasks}")
NEWS = Produces("news", "{a.news}", broadcast=True)
CODER = Consumes("tasks", "{a.tasks}", "coder")
LISTENER = Consumes("news", "{a.news}", "coder", broadcast=True)


def test_an_agent_without_streams_may_look_up_routes_notify_and_ask() -> None:
    assert rules(AgentUse("a", "idle"), "inst") == (
        *("reset", "on", "resetchannels", "-@all", "+ping", "+hello", "+time"),
        *("+client|setname", "+client|setinfo"),
        "(%R~agentstream:inst:a:routes +hget +hkeys)",
        "(&agentstream:inst:a:notify:* &agentstream:inst:a:cancel:* &agentstream:inst:a:nudge:idle +publish)",
        (
            "(&agentstream:inst:a:notify:idle &agentstream:inst:a:notify:broadcast"
            " &agentstream:inst:a:nudge:idle &agentstream:inst:a:cancel:idle +subscribe +unsubscribe)"
        ),
        "(%RW~{a.idle}:reply:* +xread +xtrim +unlink)",
    )


def test_a_producer_gets_one_selector_for_each_kind_of_key() -> None:
    assert rules(AgentUse("a", "planner", produces=(TASKS,)), "inst")[-6:] == (
        "(%RW~{a.tasks} +xadd +xlen +fcall|as1_add)",
        "(%RW~{a.tasks}:sent:* %RW~{a.tasks}:once:planner:*:* +get +set)",
        "(%R~{a.tasks}:gate +get)",
        "(%R~{a.tasks}:stats:* +hget)",
        "(%RW~{a.tasks}:order +hget +hset)",
        "(%R~{a.tasks}:contracts +hgetall)",
    )


def test_a_producer_of_a_broadcast_stream_may_see_who_acknowledged() -> None:
    assert rules(AgentUse("a", "planner", produces=(NEWS,)), "inst")[-3:] == (
        "(%R~{a.news} +xinfo|groups +xpending +fcall_ro|as1_receipt)",
        "(%R~{a.news}:parked:* +hget)",
        "(%RW~{a.news}:receipts +zadd +zscore)",
    )


def test_a_consumer_gets_one_selector_for_each_kind_of_key() -> None:
    read, *others = rules(AgentUse("a", "coder", consumes=(CODER,)), "inst")[-11:]
    assert read.startswith("(%RW~{a.tasks} %RW~{a.tasks}:retry:coder +xreadgroup +xack ")
    assert "+fcall|as1_settle " in read
    assert others == [
        "(%W~{a.tasks}:retry:coder +xadd +xdel)",
        "(%W~{a.tasks}:dlq:coder +xadd)",
        "(%RW~{a.tasks}:delay:coder +zadd +zrem +zrange)",
        "(%RW~{a.tasks}:stats:coder +hget +hset +hincrby)",
        "(%RW~{a.tasks}:parked:coder +hget +hset +hdel)",
        "(%RW~{a.tasks}:seen:coder %RW~{a.tasks}:earlier:coder +hget +hset +hlen +rename +unlink)",
        "(%RW~{a.tasks}:done:coder:* +get +set +del)",
        "(%R~{a.tasks}:contracts +hgetall)",
        "(%RW~{a.*}:reply:* +fcall|as1_reply)",
        "(%W~{a.*}:reply:* +xadd +pexpire)",
    ]


def test_no_selector_of_a_consumer_lets_it_call_the_operators_functions() -> None:
    text = " ".join(rules(AgentUse("a", "coder", (TASKS,), (CODER,)), "inst"))
    for function in ("as1_janitor", "as1_create", "as1_destroy", "as1_delete", "as1_orphan", "as1_remove"):
        assert function not in text


def test_order_and_repetition_of_uses_do_not_matter() -> None:
    one = AgentUse("a", "coder", (TASKS, NEWS), (CODER, LISTENER))
    other = AgentUse("a", "coder", (NEWS, TASKS, NEWS), (LISTENER, CODER, CODER))
    assert rules(one, "inst") == rules(other, "inst")
    assert route(one) == route(other)
    assert expectations(one, "inst") == expectations(other, "inst")


def test_the_route_lists_streams_by_name() -> None:
    assert route(AgentUse("a", "coder", (TASKS, NEWS), (CODER, LISTENER))) == Route(
        produces=(NEWS, TASKS), consumes=(LISTENER, CODER)
    )


def test_what_an_agent_does_not_do_is_expected_to_be_denied() -> None:
    producer = expectations(AgentUse("a", "planner", produces=(TASKS,)), "inst")
    consumer = expectations(AgentUse("a", "coder", consumes=(CODER,)), "inst")
    assert Probe(("XRANGE", "{a.tasks}", "-", "+"), allowed=False) in producer
    assert Probe(("XADD", "{a.tasks}", "*", "m", ""), allowed=False) in consumer


def test_what_an_agent_does_both_ways_on_one_stream_is_not_expected_to_be_denied() -> None:
    both = expectations(AgentUse("a", "coder", (TASKS,), (CODER,)), "inst")
    assert Probe(("XRANGE", "{a.tasks}", "-", "+"), allowed=False) not in both
    assert Probe(("XADD", "{a.tasks}", "*", "m", ""), allowed=False) not in both


def test_the_action_names_the_user_and_carries_rules_hashes_and_probes() -> None:
    use = AgentUse("a", "coder", consumes=(CODER,))
    action = set_user(use, "inst", ("00",))
    assert action.name == "inst.a.coder"
    assert action.password_hashes == ("00",)
    assert (action.rules, action.probes) == (rules(use, "inst"), expectations(use, "inst"))
