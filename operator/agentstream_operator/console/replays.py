"""The pages of replays: all of them, one with its progress, and a new one, which is tried out first."""

from __future__ import annotations

from typing import Any

from agentstream_operator.console.inner import Refused
from agentstream_operator.console.pages import ShownPage
from agentstream_operator.console.visit import Visit
from agentstream_operator.queue_api.documents import PreviewAnswer, ReplayAnswer, ReplaysAnswer

_SEVERAL = ("types", "senders", "ids")
_FIELDS = (
    *("namespace", "group", "source", "action", "since", "until", "correlation"),
    *("limit", "rate", "window", "expired", "reason"),
)
_NUMBERS = ("limit", "rate", "window")


async def listed(visit: Visit) -> ShownPage:
    """Shows all replays, the newest first."""
    found = await visit.api.get("/queue/replays", ReplaysAnswer)
    return ShownPage("replays.html", "Replays", {"replays": found.replays}, live=True)


async def one(visit: Visit) -> ShownPage:
    """Shows what became of a replay so far."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    found = await visit.api.get(f"/queue/replays/{namespace}/{name}", ReplayAnswer)
    return ShownPage("replay.html", f"Replay {namespace}/{name}", {"replay": found}, live=True)


async def tried(visit: Visit) -> ShownPage:
    """Shows the form of a replay, and what it would do as it is filled in; changes nothing."""
    preview, problem = None, None
    if visit.asked("look"):
        try:
            body = {**body_of(visit), "dryRun": True}
            preview = await visit.api.post("/queue/replay", body, PreviewAnswer)
        except Refused as refused:
            problem = refused.problem
    content = {"fields": fields_of(visit), "preview": preview, "problem": problem}
    return ShownPage("new_replay.html", "Replay messages", content)


async def start(visit: Visit) -> str:
    """Starts a replay. Returns the path of its page."""
    created = await visit.api.post("/queue/replay", body_of(visit), ReplayAnswer)
    return f"/console/replays/{created.namespace}/{created.name}"


async def change(visit: Visit) -> str:
    """Suspends, resumes or ends a replay. Returns the path of the page to show next."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    path, why = f"/queue/replays/{namespace}/{name}", {"reason": visit.asked("reason")}
    if visit.asked("action") == "delete":
        await visit.api.delete(path, why)
        return "/console/replays"
    await visit.api.patch(path, {"suspend": visit.asked("action") == "suspend"}, why)
    return f"/console/replays/{namespace}/{name}"


def fields_of(visit: Visit) -> dict[str, Any]:
    """Returns the fields of the form, as they were filled in."""
    given: dict[str, Any] = {name: visit.asked(name) or "" for name in _FIELDS}
    return given | _selected(visit)


def body_of(visit: Visit) -> dict[str, Any]:
    """Builds the request for a replay; what makes no sense in it is for the API to refuse."""
    asked = visit.asked
    ends = {name: asked(name) for name in ("since", "until")}
    select = _selected(visit) | {"correlation": asked("correlation")}
    more = {name: _number(asked(name)) for name in _NUMBERS}
    more |= {"action": asked("action"), "expired": asked("expired"), "reason": asked("reason")}
    return {
        "namespace": asked("namespace") or "",
        "groupRef": {"name": asked("group") or ""},
        "from": {"source": asked("source") or "", **_given(ends)},
        "select": _given(select),
        **_given(more),
    }


def _selected(visit: Visit) -> dict[str, Any]:
    # handlers write reasons, also with commas
    reasons = [reason for reason in visit.query.get("reasons", ()) if reason.strip()]
    return {name: visit.several(name) for name in _SEVERAL} | {"reasons": reasons}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "", [])}


def _number(text: str | None) -> int | str | None:
    # what is no number is for the API to refuse
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else text  # noqa: PLR2004
