"""Replays: to try one out, to start one, to see what becomes of it, to hold and to end it."""

from __future__ import annotations

import re
import secrets
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from starlette.requests import Request

from agentstream_operator.queue_api.access import (
    CHANGE_REPLAY,
    CREATE_REPLAY,
    DELETE_REPLAY,
    NAME,
    SEE_REPLAY,
    SEE_REPLAYS,
    Namespace,
    ReplayName,
    Rights,
    RightsOf,
    declared,
    of_replay,
)
from agentstream_operator.queue_api.documents import (
    PreviewAnswer,
    ReplayAnswer,
    ReplayChange,
    ReplayRequest,
    ReplaysAnswer,
)
from agentstream_operator.queue_api.ports import Replays
from agentstream_operator.queue_api.problems import Refusal, invalid, not_found
from agentstream_operator.queue_api.sources import Sources, SourcesOf
from agentstream_operator.resources.meta import ObjectMeta, ResourceKey
from agentstream_operator.resources.status import ConditionType, ReplayPhase, find_condition
from agentstream_operator.resources.streamreplay import (
    REQUESTED_BY_ANNOTATION,
    StreamReplay,
    StreamReplaySpec,
)

routes = APIRouter(prefix="/queue/replays", tags=["replays"])
start = APIRouter(tags=["replays"])

_KIND = "StreamReplay"
_SEE = "GET /queue/replays lists those that there are"
_LETTERS, _SUFFIX, _LONGEST_STEM = "bcdfghjkmnpqrstvwxz2456789", 5, 57


def _replays(request: Request) -> Replays:
    found: Replays = request.app.state.replays
    return found


ReplaysOf = Annotated[Replays, Depends(_replays)]
Why = Annotated[str | None, Query(max_length=256, description="Why, for those who read events later.")]


def answer(replay: StreamReplay) -> ReplayAnswer:
    """Describes a replay."""
    metadata, status = replay.metadata, replay.status
    ready = find_condition(status.conditions, ConditionType.READY) if status is not None else None
    return ReplayAnswer(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        created=metadata.creation_timestamp,
        requested_by=replay.requested_by,
        phase=status.phase if status is not None and status.phase is not None else ReplayPhase.PENDING,
        message=ready.message if ready is not None else "",
        spec=replay.spec,
        status=status,
    )


@start.post(
    "/queue/replay",
    summary="Start a replay, or try it out",
    status_code=HTTPStatus.ACCEPTED,
    responses={HTTPStatus.OK: {"model": PreviewAnswer, "description": "What it would do: `dryRun: true`."}},
    response_model=ReplayAnswer,
    openapi_extra=declared(CREATE_REPLAY),
)
async def start_replay(
    *,
    wanted: ReplayRequest,
    rights: RightsOf,
    sources: SourcesOf,
    replays: ReplaysOf,
    response: Response,
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The replay's name: sent again with the same body, nothing is started twice.",
            json_schema_extra={"pattern": NAME, "maxLength": 63},
        ),
    ] = None,
) -> object:
    """Creates a StreamReplay, which the operator carries out; with `dryRun: true`, says what it would do.

    A dry run changes nothing and answers at once, with 200. Otherwise the answer is 202, and `Location` is
    where to see what becomes of it. A group has one replay at a time; another one waits.
    """
    name = _name(wanted, idempotency_key)
    await rights.require(CREATE_REPLAY, wanted.namespace, name)
    group = sources.group(wanted.namespace, wanted.group_ref.name)
    spec = wanted.spec
    if spec.dry_run:
        with request.app.state.searches.of(rights.caller):
            preview = await sources.previews.preview(group, spec)
        return Response(preview.model_dump_json(by_alias=True), media_type="application/json")
    by = {REQUESTED_BY_ANNOTATION: rights.caller.name}
    metadata = ObjectMeta(name=name, namespace=wanted.namespace, annotations=by)
    created = await replays.create(rights.caller, StreamReplay(metadata=metadata, spec=spec))
    if created is None:
        created = await replays.get(ResourceKey(_KIND, wanted.namespace, name))
        if created is None or _fixed(created.spec) != _fixed(spec):
            detail = f"another replay in {wanted.namespace} has the name {name}"
            raise Refusal(HTTPStatus.CONFLICT, detail, "choose another name, or Idempotency-Key")
    response.headers["Location"] = f"/queue/replays/{wanted.namespace}/{name}"
    return answer(created)


async def replays_of(
    rights: Rights,
    sources: Sources,
    replays: Replays,
    namespace: str | None = None,
    group: str | None = None,
) -> ReplaysAnswer:
    """Lists what a caller may see, and asks for.

    Raises:
        Refusal: 403: that is nothing.
    """
    if namespace is not None:
        await rights.require(SEE_REPLAYS, namespace)
        found = await replays.list(namespace)
    else:
        found = await replays.list("")
        there = {*sources.namespaces, *(replay.metadata.namespace for replay in found)}
        seen = await rights.among(SEE_REPLAYS, there)
        found = [replay for replay in found if replay.metadata.namespace in seen]
    answers = [answer(replay) for replay in found if group in (None, replay.spec.group_ref.name)]
    answers.sort(key=lambda each: (each.created is not None, each.created, each.name), reverse=True)
    return ReplaysAnswer(replays=tuple(answers))


@routes.get("", summary="All replays", openapi_extra=declared(SEE_REPLAYS))
async def list_replays(
    rights: RightsOf,
    sources: SourcesOf,
    replays: ReplaysOf,
    namespace: Annotated[str | None, Query(pattern=NAME, description="Only of this namespace.")] = None,
    group: Annotated[str | None, Query(pattern=NAME, description="Only of this ConsumerGroup.")] = None,
) -> ReplaysAnswer:
    """Lists the replays of all namespaces whose replays the caller may list, the newest first."""
    return await replays_of(rights, sources, replays, namespace, group)


@routes.get(
    "/{namespace}/{name}",
    summary="One replay",
    dependencies=[of_replay(SEE_REPLAY)],
    openapi_extra=declared(SEE_REPLAY),
)
async def get_replay(replays: ReplaysOf, namespace: Namespace, name: ReplayName) -> ReplayAnswer:
    """Says what became of a replay so far: how much of it was moved, handled, and is dead again."""
    return answer(_there(await replays.get(ResourceKey(_KIND, namespace, name)), namespace, name))


@routes.patch(
    "/{namespace}/{name}",
    summary="Hold a replay, or change its pace",
    dependencies=[of_replay(CHANGE_REPLAY)],
    openapi_extra=declared(CHANGE_REPLAY),
)
async def change_replay(
    *,
    change: ReplayChange,
    rights: RightsOf,
    replays: ReplaysOf,
    namespace: Namespace,
    name: ReplayName,
    reason: Why = None,
) -> ReplayAnswer:
    """Changes `suspend`, `rate`, `window` or `ttlSecondsAfterFinished`; null is the default.

    An event says who did it.
    """
    # what is given as null gets its default
    fields = change.model_dump(by_alias=True, exclude_unset=True, mode="json")
    if not fields:
        raise invalid("body", "nothing is to be changed", "give suspend, rate, window or a time to live")
    changed = await replays.patch(rights.caller, ResourceKey(_KIND, namespace, name), fields, reason)
    return answer(_there(changed, namespace, name))


@routes.delete(
    "/{namespace}/{name}",
    summary="End a replay",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[of_replay(DELETE_REPLAY)],
    openapi_extra=declared(DELETE_REPLAY),
)
async def delete_replay(
    rights: RightsOf, replays: ReplaysOf, namespace: Namespace, name: ReplayName, reason: Why = None
) -> None:
    """Deletes a replay, which stops it; what was moved before stays moved. An event says who did it."""
    key = ResourceKey(_KIND, namespace, name)
    if not await replays.delete(rights.caller, key, reason):
        raise not_found(f"{_KIND} {namespace}/{name}", _SEE)


def _there(replay: StreamReplay | None, namespace: str, name: str) -> StreamReplay:
    if replay is None:
        raise not_found(f"{_KIND} {namespace}/{name}", _SEE)
    return replay


def _fixed(spec: StreamReplaySpec) -> StreamReplaySpec:
    """Returns what cannot be changed of a spec."""
    return spec.model_copy(update=dict.fromkeys(ReplayChange.model_fields))


def _name(wanted: ReplayRequest, idempotency_key: str | None) -> str:
    """Returns the name that a request gives to its replay, or a new one."""
    if idempotency_key is None:
        suffix = "".join(secrets.choice(_LETTERS) for _ in range(_SUFFIX))
        stem = wanted.group_ref.name[:_LONGEST_STEM].rstrip("-")
        return wanted.name or f"{stem}-{suffix}"
    key = idempotency_key.strip('"')
    if not re.fullmatch(NAME, key):
        remedy = "use up to 63 lower-case letters, digits and hyphens, such as a UUID"
        raise invalid("header/Idempotency-Key", "it is to be the replay's name", remedy)
    if wanted.name not in (None, key):
        raise invalid("header/Idempotency-Key", "it differs from `name`", "leave one of them out")
    return key
