"""The function library in Lua and the resources of the operator say the same as the protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

import pytest

from agentstream.protocol import commands, library, replaying, whereabouts
from agentstream.protocol.commands import Command, GroupCalls
from agentstream.protocol.entry import Source, parse_entry
from agentstream.protocol.envelope import MessageType
from agentstream.protocol.keys import DNS_LABEL, StreamKeys, replay_id
from agentstream.protocol.routes import Consumes
from agentstream_operator.resources import contracts
from agentstream_operator.resources.consumergroup import DeadLetterSpec, DeliverySpec
from agentstream_operator.resources.model import DnsLabel

KEY = "{t.tasks}"
KEYS = StreamKeys(KEY)
REPLAY = replaying.ReplayOf(KEY, "coder", replay_id("again", "01234567-89ab"))
LIBRARY = library.source()


@dataclass
class Pending:
    source: Source
    id: str = "1-0"
    counter: int = 7
    after: str | None = "0-1"


ENTRY = Pending(Source(KEY, retry=False))
GROUP = GroupCalls(Consumes("tasks", KEY, "coder", broadcast=True), "pod.1")
CALLS: list[Command] = [
    commands.REVISION,
    commands.add(KEYS, "token", 1, 2, commands.message(b"data", ("key", "k"))),
    commands.reply("reply", 1, ("m", b"data")),
    commands.receipt(KEYS, ("coder",), ("1-0",)),
    commands.once(KEY, KEYS.done("coder", "k"), "token", 1),
    commands.end_once(KEY, KEYS.done("coder", "k"), "token", "done", 1),
    GROUP.take(ENTRY.source, "pod.1-2-3", "-", 10),
    GROUP.sweep(1, 2, 3, now=True),
    GROUP.begin(ENTRY.source, (ENTRY,)),
    GROUP.renew(ENTRY.source, 1, (ENTRY,)),
    GROUP.release(ENTRY.source, "begun", (ENTRY,)),
    GROUP.settle(ENTRY.source, "acked", (ENTRY,)),
    GROUP.retry(ENTRY, 1, 2, "Failed", "boom"),
    GROUP.dead_letter(ENTRY, 2, "Failed", "boom"),
    GROUP.turn(ENTRY.source, (ENTRY,)),
    GROUP.originals((parse_entry(ENTRY.source, "1-0", [b"m", b"{}"]),)),
    commands.create_stream(KEY, {"name": "tasks"}),
    commands.set_contracts(KEY, "digest", {"event@1": "{}"}),
    commands.create_group(KEY, "coder", "0"),
    commands.destroy_group(KEY, "coder"),
    commands.heal_group(KEY, "coder", again=True),
    commands.heal_ids(KEY, ("coder",)),
    commands.delete_stream(KEY, ("coder",), only_if_empty=True),
    commands.observe(KEY, ("coder",), trusts_lag=True),
    commands.measure([(KEY, "", ("coder",))], trusts_lag=True),
    commands.release_pod(KEY, "coder", ("pod", 5), "-", for_good=True, retries=False),
    commands.remove_consumers(KEY, "coder", "pod", None),
    commands.janitor(KEY, (1, 2, 3, "TrimOldest", 4), [("coder", 5, 6)], trusts_lag=True, broadcast=False),
    replaying.page(KEY, replaying.FIRST, replaying.LAST, 10),
    replaying.replay(REPLAY, "dead", ("1-0", "2-0"), 100, (replaying.Selected("1-0", "", "k"),)),
    replaying.drop(REPLAY, ("1-0", "2-0"), ("1-0",)),
    replaying.progress(REPLAY),
    replaying.end(REPLAY),
    whereabouts.whereabouts(KEY, "coder", "1-0"),
]
# what arguments of these names must be
MEANING = {
    "base": KEYS.base,
    "group": "coder",
    "consumer": "pod.1",
    "prefix": "pod.",
    "holder": "pod.1-2-3",
    "id": "1-0",
    "counter": 7,
    "declared group": "coder",
    "replay id": "again.01234567",
    "cursor": "1-0",
    "new cursor": "2-0",
    "window": 100,
    "ordering key": "k",
    "id of a dead letter": "1-0",
    "sent key": KEYS.sent("token"),
    "gate key": KEYS.gate,
    "receipts key": KEYS.receipts,
    "order key": KEYS.order,
    "meta key": KEYS.meta,
    "contracts key": KEYS.contracts,
    "done key": KEYS.done("coder", "k"),
    "stats key": KEYS.stats("coder"),
    "delay key": KEYS.delay("coder"),
    "seen key": KEYS.seen("coder"),
    "earlier key": KEYS.earlier("coder"),
    "original id": "1-0",
    "retry key": KEYS.retry("coder"),
    "parked key": KEYS.parked("coder"),
    "dead letter key": KEYS.dead_letters("coder"),
}


def registered() -> dict[str, tuple[str, bool]]:
    """Each function of the library: the contract above it, and whether it writes nothing."""
    found = re.findall(r"register\('(\w+)', (\w+)(?:, \{(.*?)\})?\)", LIBRARY)
    functions = {}
    for name, callback, flags in found:
        above = re.search(rf"((?:^--.*\n)+)local function {callback}\(keys, args\)", LIBRARY, re.MULTILINE)
        contract = " ".join(re.findall(r"-- (.*)", above[1])) if above else "KEYS: ARGV: ."
        functions[name] = (contract, "no-writes" in flags)
    return functions


FUNCTIONS = registered()


def test_each_function_has_one_builder() -> None:
    assert sorted(str(command[1]) for command in CALLS) == sorted(FUNCTIONS)


@pytest.mark.parametrize("command", CALLS, ids=lambda command: str(command[1]))
def test_arguments_are_those_of_the_contract(command: Command) -> None:
    how, name, keys, *rest = command
    contract, reads_only = FUNCTIONS[str(name)]
    assert how == "FCALL" or (how == "FCALL_RO" and reads_only)
    arguments = rest[int(keys) :]
    listed = contract.partition("ARGV: ")[2].partition(". ")[0]
    names = [part.rpartition(": ")[2].strip() for part in listed.split(",") if part.strip(" .")]
    assert len(arguments) == len(names), names
    for argument, said in zip(arguments, names, strict=True):
        meaning = said.partition(" or ''")[0]
        if meaning in MEANING:
            assert argument == MEANING[meaning], said
        if choices := re.search(r"\(([\w|]+)\)", said):
            assert str(argument) in choices[1].split("|"), said


def test_a_page_is_the_same() -> None:
    assert f"local PAGE = {commands.PAGE}\n" in LIBRARY


def test_reply_codes_are_the_same() -> None:
    codes = f"{commands.DONE}, {commands.GONE}, {commands.TAKEN}, {commands.TRIMMED}"
    assert f"local DONE, GONE, TAKEN, TRIMMED = {codes}" in LIBRARY


def test_derived_keys_are_the_same() -> None:
    of_group = {part(KEYS, "") for part in (StreamKeys.retry, StreamKeys.delay, StreamKeys.dead_letters)}
    of_group |= {KEYS.stats(""), KEYS.parked(""), KEYS.seen(""), KEYS.earlier("")}
    of_stream = {KEYS.meta, KEYS.gate, KEYS.order, KEYS.contracts, KEYS.receipts, KEYS.replay("")}
    used = set(re.findall(r"base \.\. '(:\w+:?)'", LIBRARY))
    listed = [set(re.findall(r"'(:\w+:)'", parts)) for parts in re.findall(r"ipairs\(\{(':.*?)\}\)", LIBRARY)]
    assert {f"{KEYS.base}{suffix}" for suffix in used.union(*listed)} == of_group | of_stream
    # a stream that is deleted leaves no key of a group
    assert {f"{KEYS.base}{suffix}" for suffix in listed[-1]} == of_group


def test_defaults_of_a_policy_are_those_of_the_resource() -> None:
    policy, delivery = Consumes("s", "k", "g"), DeliverySpec()
    assert policy.lease == delivery.lease.milliseconds
    assert policy.max_deliveries == delivery.max_deliveries
    assert policy.backoff_initial == delivery.backoff.initial.milliseconds
    assert policy.backoff_factor == delivery.backoff.factor
    assert policy.backoff_max == delivery.backoff.max.milliseconds
    assert (policy.dead_letters, policy.deadline) == (DeadLetterSpec().enabled, delivery.deadline or 0)


def test_message_types_of_contracts_are_those_of_messages() -> None:
    assert {kind.value for kind in contracts.MessageType} == set(get_args(MessageType))


@pytest.mark.parametrize("name", ["a", "a-b", "1", "a" * 63, "", "-a", "a-", "A", "a" * 64, "a.b"])
def test_labels_are_the_same(name: str) -> None:
    text = next(part for part in get_args(DnsLabel) if hasattr(part, "pattern"))
    fits = re.match(text.pattern, name) is not None and len(name) <= text.max_length
    assert (re.fullmatch(DNS_LABEL, name) is not None) == fits
