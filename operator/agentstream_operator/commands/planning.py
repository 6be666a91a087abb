"""Tries out manifests, and prints what they would change."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.output import Printer
from agentstream_operator.commands.session import Session
from agentstream_operator.commands.target import cluster, local_console
from agentstream_operator.local.manifests.loader import STDIN, Manifests, load_manifests
from agentstream_operator.local.manifests.metadata import read_metadata
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.plan.changes import Act, PlannedResource, StreamNow, Trial, change_of
from agentstream_operator.queue_api.documents import Answer, LagAnswer
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import AnyResource, InvalidResource, parse_resource, refused_changes
from agentstream_operator.resources.streamreplay import StreamReplay

_SHOWN = 60


class PlannedField(Answer):
    """A field that changes; null: it is absent."""

    path: str
    before: Any
    after: Any


class PlannedChange(Answer):
    """What becomes of a resource: the fields that change, and what that means, or why it is refused."""

    kind: str
    namespace: str
    name: str
    act: Act
    fields: tuple[PlannedField, ...]
    means: tuple[str, ...]


class PlanAnswer(Answer):
    """The resources that change, and how many do not."""

    changes: tuple[PlannedChange, ...]
    unchanged: int


def run(session: Session, paths: Sequence[Path]) -> None:
    """Prints what applying manifests would change; ends the command with 1 if anything, 2 if one is refused.

    Raises:
        CommandFailed: the manifests have mistakes, or what is there cannot be read.
    """
    stdin = (sys.stdin.buffer.read() if sys.stdin is not None else b"") if STDIN in paths else None
    manifests = load_manifests(paths, stdin)
    if not manifests.lines and not manifests.problems:
        shown = ", ".join(map(str, paths))
        manifests.problems.append(f"{shown}: declares no AgentStream, no ConsumerGroup and no StreamReplay")
    if manifests.problems:
        raise CommandFailed(*manifests.problems, code=BAD_INPUT)
    if session.options.api is not None:
        raise CommandFailed(
            "--api: the HTTP API knows no manifests: use a kubeconfig, or the folder of a running "
            "`agentstream dev`",
            code=BAD_INPUT,
        )
    console = local_console(session.options)
    if console is None:
        contents = [document.content for document in manifests.documents.values()]
        trials: list[Trial] = cluster().tried(session.options, contents)
    else:
        trials = _in_dev(session, console.parent, manifests)
    changes = [change_of(trial, now) for trial, now in _with_numbers(session, trials)]
    _show(session.printer, changes)
    if any(change.act is Act.REFUSE for change in changes):
        raise typer.Exit(BAD_INPUT)
    if any(change.act is not Act.NOTHING for change in changes):
        raise typer.Exit(NOT_SO)


def _in_dev(session: Session, data: Path, manifests: Manifests) -> list[Trial]:
    """Compares with what runs."""
    present = running(session, data)
    trials = [_trial(resource, present.get(key)) for key, resource in manifests.declared.items()]
    trials += (Trial(key, {"spec": present[key]}, None) for key in present if key not in manifests.declared)
    trials += (_trial(replay, _kept(data, replay)) for replay in manifests.replays.values())
    declared = {trial.key for trial in trials if trial.after is not None}
    return [
        msgspec.structs.replace(trial, orphan=_stream_of(trial) not in declared) if trial.after else trial
        for trial in trials
    ]


def running(session: Session, data: Path) -> dict[ResourceKey, dict[str, Any]]:
    """Returns the specs of the streams and groups that an `agentstream dev` has in effect.

    Raises:
        CommandFailed: its data cannot be read.
    """
    lag = session.api.get("/queue/lag", LagAnswer)
    present = {ResourceKey("AgentStream", each.namespace, each.name) for each in lag.streams}
    present |= {ResourceKey("ConsumerGroup", each.namespace, each.name) for each in lag.groups}
    try:
        stored = read_metadata(data / "resources.json")
    except LocalError as error:
        raise CommandFailed(*error.lines, code=UNREACHABLE) from error
    return {key: json.loads(stored[key].spec) for key in present & stored.keys()}


def _trial(resource: AnyResource, spec: Mapping[str, Any] | None) -> Trial:
    after = {"spec": resource.spec.as_manifest()}
    if spec is None:
        return Trial(resource.key, None, after)
    try:
        before = parse_resource({**resource.as_manifest(), "spec": spec})
    except InvalidResource:
        # of another version, which had other fields
        return Trial(resource.key, {"spec": spec}, after)
    return Trial(resource.key, {"spec": before.spec.as_manifest()}, after, refused_changes(before, resource))


def _kept(data: Path, replay: StreamReplay) -> Mapping[str, Any] | None:
    """The spec of a replay that is kept; one that was carried out and deleted is not carried out again."""
    file = data / "replays" / f"{replay.key.namespace}.{replay.key.name}.json"
    if not file.is_file():
        return None
    kept: dict[str, Any] = json.loads(file.read_bytes())
    deleted = "deleted" in (kept["metadata"].get("annotations") or {}).values()
    return replay.spec.as_manifest() if deleted else kept["spec"]


def _with_numbers(session: Session, trials: Sequence[Trial]) -> Iterator[tuple[Trial, StreamNow]]:
    """Adds the numbers of streams, which are asked for only if something changes."""
    numbers: dict[ResourceKey, StreamNow] = {}
    if any(trial.before != trial.after for trial in trials):
        # without them, less can be said
        with contextlib.suppress(CommandFailed):
            for each in session.api.get("/queue/lag", LagAnswer).streams:
                key = ResourceKey("AgentStream", each.namespace, each.name)
                numbers[key] = StreamNow(each.length, each.history_seconds)
    for trial in trials:
        yield trial, numbers.get(_stream_of(trial), StreamNow())


def _stream_of(trial: Trial) -> ResourceKey:
    if trial.key.kind != "ConsumerGroup":
        return trial.key
    spec = (trial.after or trial.before or {}).get("spec") or {}
    return ResourceKey("AgentStream", trial.key.namespace, (spec.get("streamRef") or {}).get("name") or "")


def _show(printer: Printer, changes: Sequence[PlannedResource]) -> None:
    shown = [change for change in changes if change.act is not Act.NOTHING]
    unchanged = len(changes) - len(shown)
    if printer.structured:
        printer.document(PlanAnswer(changes=tuple(map(_document, shown)), unchanged=unchanged))
        return
    for change in shown:
        printer.line(f"{change.act:<8} {change.key}")
        for line in _lines(change):
            printer.line(f"         {line}")
    acts = {act: sum(change.act is act for change in changes) for act in Act}
    counts = ", ".join(f"{number:,} {_DONE[act]}" for act, number in acts.items() if number)
    printer.line(counts)


_DONE = {
    Act.CREATE: "to create",
    Act.CHANGE: "to change",
    Act.REMOVE: "to remove",
    Act.REFUSE: "refused",
    Act.NOTHING: "as declared",
}


def _lines(change: PlannedResource) -> Iterator[str]:
    for path, before, after in change.fields:
        yield f"{path}: {_value(before)} -> {_value(after)}"
    yield from change.means


def _value(value: Any) -> str:
    if value is None:
        return "(absent)"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _document(change: PlannedResource) -> PlannedChange:
    fields = tuple(PlannedField(path=f.path, before=f.before, after=f.after) for f in change.fields)
    return PlannedChange(**change.key._asdict(), act=change.act, fields=fields, means=change.means)
