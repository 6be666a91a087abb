"""What is wrong with an installation: each mistake is found, named as in conditions, and has a remedy."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream_operator.plan.checkup import (
    OLDEST_SAFE,
    Deployed,
    Finding,
    Verdict,
    check_definition,
    check_kubernetes,
    check_operator,
    check_right,
    check_server,
    check_version,
)
from agentstream_operator.plan.observed import ServerInfo
from agentstream_operator.resources.crd import KINDS, crd
from support.examples import examples

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
FINE = ServerInfo(
    program="valkey",
    version="9.1.2",
    role="master",
    used_memory=2**20,
    max_memory=2**30,
    eviction_policy="noeviction",
    append_only=True,
    write_failed=False,
    clock=int(NOW.timestamp() * 1000),
    library=8,
)
DEFINITION = crd(KINDS[0])
NAME = DEFINITION["metadata"]["name"]
ESTABLISHED = {"status": {"conditions": [{"type": "Established", "status": "True"}]}}


def wrong(findings: list[Finding]) -> dict[str, Finding]:
    found = {finding.check: finding for finding in findings if finding.verdict is not Verdict.OK}
    assert all(finding.remedy for finding in found.values())
    return found


def check(*, shared: bool = True, **changed: Any) -> list[Finding]:
    return check_server(msgspec.structs.replace(FINE, **changed), NOW, 8, shared=shared)


def test_a_server_as_the_documentation_wants_it_is_fine() -> None:
    assert wrong(check()) == {}
    assert [f.check for f in check(shared=False)] == [
        *("server", "eviction", "memory", "durability", "functions", "clock")
    ]


@pytest.mark.parametrize(
    ("changed", "name", "text"),
    [
        ({"role": "slave"}, "server", "valkey 9.1.2, slave"),
        ({"version": "9.1.0"}, "server version", "valkey 9.1.0 has known flaws"),
        ({"version": "7.2.9"}, "server version", "valkey 7.2.9 gets no fixes any more"),
        ({"program": "redis", "version": "8.0.9"}, "server version", "redis 8.0.9 gets no fixes any more"),
        (
            {"eviction_policy": "allkeys-lru"},
            "eviction",
            "EvictionPolicyWrong: maxmemory-policy is allkeys-lru, not noeviction",
        ),
        ({"max_memory": None}, "memory", "1.0 MiB in use, and maxmemory is not set"),
        ({"used_memory": 2**30 - 1}, "memory", "1,024.0 MiB in use of 1,024.0 MiB"),
        ({"append_only": False}, "durability", "appendonly is no"),
        ({"write_failed": True}, "durability", "the latest write to the disk failed"),
        ({"library": None}, "functions", "the function library is not loaded"),
        ({"library": 7}, "functions", "the function library has revision 7, and this version 8"),
        ({"clock": FINE.clock - 60_000}, "clock", "the server is 60 s behind this machine"),
        ({"clock": FINE.clock + 7_200_000}, "clock", "the server is 7,200 s ahead of this machine"),
    ],
)
def test_each_mistake_of_a_server_is_found(changed: dict[str, Any], name: str, text: str) -> None:
    [(check_name, finding)] = wrong(check(**changed)).items()
    assert (check_name, finding.text) == (name, text)


@settings(max_examples=examples(100))
@given(st.floats(-30, 30))
def test_clocks_may_differ_by_five_seconds(seconds: float) -> None:
    clock = int((NOW + timedelta(seconds=seconds)).timestamp() * 1000)
    assert ("clock" in wrong(check(clock=clock))) is (abs(seconds) > 5.001) or 4.99 < abs(seconds) < 5.01


@pytest.mark.parametrize("program", OLDEST_SAFE)
def test_the_oldest_safe_versions_are_those_of_the_documentation(program: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations" / "install.md").read_text()
    row = re.search(rf"^\| {program.title()} \| (.+) \|$", page, re.MULTILINE)
    assert row is not None
    assert row[1].split(", ") == [".".join(map(str, safe)) for safe in OLDEST_SAFE[program]]
    for version in row[1].split(", "):
        assert wrong(check(program=program, version=version)) == {}
    assert wrong(check(program=program, version="99.0.0")) == {}


def test_versions_agree_or_do_not() -> None:
    assert check_version("api", "1.0", "1.0").verdict is Verdict.OK
    finding = check_version("api", "", "1.0")
    assert (finding.verdict, finding.text) == (Verdict.WRONG, "version unknown, and this command is 1.0")


@pytest.mark.parametrize(
    ("version", "fine"), [("v1.29.0", True), ("v1.34.1+k3s1", True), ("v1.28.15", False)]
)
def test_an_old_kubernetes_is_found(version: str, *, fine: bool) -> None:
    assert (check_kubernetes(version).verdict is Verdict.OK) is fine


def a_definition(**changed: Any) -> dict[str, Any]:
    return copy.deepcopy(DEFINITION) | ESTABLISHED | changed


def checked(found: dict[str, Any] | None) -> Finding:
    return check_definition(NAME, DEFINITION, found)


def test_a_definition_of_this_version_is_fine_with_what_the_api_server_adds() -> None:
    found = a_definition()
    found["spec"]["versions"][0]["deprecated"] = False
    assert checked(found).verdict is Verdict.OK


def test_a_definition_that_is_missing_not_served_or_of_another_version_is_found() -> None:
    assert checked(None).text == f"{NAME} is not there"
    assert checked(a_definition(status={})).text == f"{NAME} is not served"
    older, newer = a_definition(), a_definition()
    older_spec, newer_spec = (
        each["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for each in (older, newer)
    )
    del older_spec["properties"]["broadcast"]
    newer_spec["properties"]["later"] = {"type": "string"}
    assert checked(older).text.endswith("spec.properties.broadcast differs")
    assert checked(newer).text.endswith("spec.properties.later differs")


def test_an_operator_that_is_missing_not_ready_or_of_another_version_is_found() -> None:
    assert wrong(check_operator((), "home", "1"))["operator"].text == "there is none in namespace home"
    assert wrong(check_operator((Deployed("home/a", "1", 2, 2),), "home", "1")) == {}
    assert wrong(check_operator((Deployed("home/a", "1", 2, 1),), "home", "1"))["operator"].text == (
        "home/a: 1 of 2 pods ready"
    )
    assert (
        "version 2" in wrong(check_operator((Deployed("home/a", "2", 1, 1),), "home", "1"))["operator"].text
    )


def test_a_right_that_one_does_not_have_is_no_mistake() -> None:
    assert check_right("read numbers", "get on x", "namespace a", allowed=True).verdict is Verdict.OK
    finding = check_right("read numbers", "get on x", "namespace a", allowed=False)
    assert (finding.verdict, finding.text) == (Verdict.NOTE, "you may not read numbers in namespace a")
