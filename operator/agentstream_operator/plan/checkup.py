"""Decides what is wrong with an installation: the server, the cluster, versions, rights, the resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from agentstream_operator.plan.observed import ServerInfo
from agentstream_operator.plan.retention import NO_EVICTION, eviction_text
from agentstream_operator.resources.reasons import ConditionReason

SKEW = 5.0
"""Seconds by which clocks may differ."""

OLDEST_SAFE: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "valkey": ((8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1)),
    "redis": ((7, 2, 16), (7, 4, 11), (8, 2, 10), (8, 6, 7), (8, 8, 3), (8, 10, 2)),
}
"""The oldest version of each line without a flaw that we know of; docs/operations/install.md has the same."""

OLDEST_KUBERNETES = (1, 29)

_FULL = 0.9
_MEGABYTE = 2**20


class Verdict(StrEnum):
    """What came of a check."""

    OK = "ok"
    NOTE = "note"  # nothing is wrong, or it could not be looked at
    WRONG = "wrong"


class Finding(NamedTuple):
    """What came of a check, and what to do about it."""

    check: str
    verdict: Verdict
    text: str
    remedy: str = ""


class Deployed(msgspec.Struct, frozen=True):
    """A Deployment: its place, the version on its label, and replicas."""

    place: str
    version: str
    wanted: int
    ready: int


def check_server(info: ServerInfo, now: datetime, revision: int, *, shared: bool) -> list[Finding]:
    """Checks the server.

    Args:
        info: what it tells of itself.
        now: the time of this machine.
        revision: of the function library that this version needs.
        shared: whether others reach the server, as they do not reach that of a laptop.
    """
    found = [
        _role(info),
        _eviction(info.eviction_policy),
        _memory(info),
        _durability(info),
        _library(info.library, revision),
        check_clock("the server", datetime.fromtimestamp(info.clock / 1000, UTC), now),
    ]
    return [found[0], *([_version(info)] if shared else []), *found[1:]]


def check_clock(whose: str, theirs: datetime, now: datetime) -> Finding:
    """Checks a clock against that of this machine."""
    apart = abs((theirs - now).total_seconds())
    if apart <= SKEW:
        return Finding("clock", Verdict.OK, f"{whose} and this machine agree to {SKEW:g} s")
    text = f"{whose} is {apart:,.0f} s {'ahead of' if theirs > now else 'behind'} this machine"
    return Finding("clock", Verdict.WRONG, text, "set the wrong one of both by NTP")


def check_version(what: str, theirs: str, ours: str) -> Finding:
    """Checks that a part of the installation is of the version of this command."""
    if theirs == ours:
        return Finding(what, Verdict.OK, f"version {theirs}, as this command")
    text = f"version {theirs or 'unknown'}, and this command is {ours}"
    return Finding(what, Verdict.WRONG, text, "update the older one of both")


def check_kubernetes(version: str) -> Finding:
    """Checks the version of the API server, such as `v1.34.1`."""
    numbers = _numbers(version.removeprefix("v"))
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    if numbers[:2] < OLDEST_KUBERNETES:
        return Finding(
            "kubernetes", Verdict.WRONG, f"version {version}", f"AgentStream needs {oldest} or newer"
        )
    return Finding("kubernetes", Verdict.OK, f"version {version}")


def check_definition(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> Finding:
    """Checks that a CRD is there, is served, and as this version has it."""
    remedy = "apply the CRDs of this version: `helm upgrade`, or kubectl apply --server-side -f crds/"
    if found is None:
        return Finding("crd", Verdict.WRONG, f"{name} is not there", remedy)
    states = {c["type"]: c["status"] for c in (found.get("status") or {}).get("conditions") or ()}
    if states.get("Established") != "True":
        return Finding("crd", Verdict.WRONG, f"{name} is not served", f"kubectl describe crd {name}")
    differing = _first_difference(wanted["spec"]["versions"], found["spec"]["versions"])
    if differing is not None:
        text = f"{name} is of another version: {differing.lstrip('.') or 'versions'} differs"
        return Finding("crd", Verdict.WRONG, text, remedy)
    return Finding("crd", Verdict.OK, f"{name} is of this version")


def check_operator(deployments: Iterable[Deployed], where: str, ours: str) -> list[Finding]:
    """Checks the operator's Deployments in a namespace."""
    found = list(deployments)
    if not found:
        remedy = "install the chart, or name its namespace with --api-namespace"
        return [Finding("operator", Verdict.WRONG, f"there is none in namespace {where}", remedy)]
    findings = []
    for each in found:
        namespace, _, name = each.place.partition("/")
        pods = f"{each.place}: {each.ready} of {each.wanted} pods ready"
        if each.ready == 0 or each.ready < each.wanted:
            remedy = f"kubectl -n {namespace} describe deployment {name}, and its logs"
            findings.append(Finding("operator", Verdict.WRONG, pods, remedy))
        else:
            findings.append(Finding("operator", Verdict.OK, pods))
        findings.append(check_version("operator", each.version, ours))
    return findings


def check_right(what: str, need: str, where: str, *, allowed: bool) -> Finding:
    """Tells whether the caller may do something; not to have a right is no mistake."""
    if allowed:
        return Finding("rights", Verdict.OK, f"you may {what} in {where}")
    remedy = f"ask for a Role with {need}, if you need it"
    return Finding("rights", Verdict.NOTE, f"you may not {what} in {where}", remedy)


def _role(info: ServerInfo) -> Finding:
    text = f"{info.program} {info.version}, {info.role}"
    if info.role != "master":
        return Finding("server", Verdict.WRONG, text, "give the operator the address of the primary")
    return Finding("server", Verdict.OK, text)


def _version(info: ServerInfo) -> Finding:
    numbers = _numbers(info.version)
    lines: dict[tuple[int, ...], tuple[int, ...]] = {safe[:2]: safe for safe in OLDEST_SAFE[info.program]}
    text = f"{info.program} {info.version}"
    oldest = lines.get(numbers[:2])
    if (oldest is not None and numbers >= oldest) or numbers[:2] > max(lines):
        return Finding("server version", Verdict.OK, f"{text} has no flaw that this version knows of")
    named = ", ".join(".".join(map(str, safe)) for safe in OLDEST_SAFE[info.program])
    text += " has known flaws" if oldest is not None else " gets no fixes any more"
    return Finding("server version", Verdict.WRONG, text, f"update it, at least to one of {named}")


def _eviction(policy: str) -> Finding:
    if policy != NO_EVICTION:
        reason = ConditionReason.EVICTION_POLICY_WRONG
        return Finding(
            "eviction", Verdict.WRONG, f"{reason}: {eviction_text(policy)}".rstrip("."), reason.action
        )
    return Finding("eviction", Verdict.OK, f"maxmemory-policy is {policy}")


def _memory(info: ServerInfo) -> Finding:
    used, most = info.used_memory / _MEGABYTE, info.max_memory
    if most is None:
        text = f"{used:,.1f} MiB in use, and maxmemory is not set"
        remedy = "set maxmemory: without a limit the server is killed when memory runs out"
        return Finding("memory", Verdict.WRONG, text, remedy)
    text = f"{used:,.1f} MiB in use of {most / _MEGABYTE:,.1f} MiB"
    if info.used_memory > _FULL * most:
        remedy = "raise maxmemory, or keep less (spec.retention): at the limit it refuses writes"
        return Finding("memory", Verdict.WRONG, text, remedy)
    return Finding("memory", Verdict.OK, text)


def _durability(info: ServerInfo) -> Finding:
    if info.write_failed:
        remedy = "look at the server's log and its disk: it cannot store what it accepts"
        return Finding("durability", Verdict.WRONG, "the latest write to the disk failed", remedy)
    if not info.append_only:
        remedy = "set `appendonly yes`: accepted messages are lost when the server crashes"
        return Finding("durability", Verdict.WRONG, "appendonly is no", remedy)
    return Finding("durability", Verdict.OK, "appendonly is yes")


def _library(found: int | None, ours: int) -> Finding:
    if found is None or found < ours:
        text = "is not loaded" if found is None else f"has revision {found}, and this version {ours}"
        remedy = "the operator loads it when it starts: does it run, and is it of this version?"
        return Finding("functions", Verdict.WRONG, f"the function library {text}", remedy)
    return Finding("functions", Verdict.OK, f"the function library has revision {found}")


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version; what is no number ends them."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _first_difference(wanted: Any, found: Any, path: str = "") -> str | None:
    """Returns the path of the first value that differs from what is wanted; the API server adds some."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for name, value in wanted.items():
            if (where := _first_difference(value, found.get(name), f"{path}.{name}")) is not None:
                return where
        more = (found.keys() - wanted.keys()) if path.endswith(".properties") else ()
        return f"{path}.{min(more)}" if more else None
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        if len(wanted) != len(found):
            return path
        pairs = enumerate(zip(wanted, found, strict=True))
        return next(
            (where for n, (w, f) in pairs if (where := _first_difference(w, f, f"{path}[{n}]")) is not None),
            None,
        )
    return None if wanted == found else path
