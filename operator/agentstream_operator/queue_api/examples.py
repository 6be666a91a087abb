"""Examples for the description of the API: what callers give, and what they get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from agentstream_operator.queue_api.ports import Unauthenticated
from agentstream_operator.queue_api.problems import (
    Refusal,
    busy,
    failure_of,
    invalid,
    not_found,
    unavailable,
)

NAMES: Final[Mapping[str, str]] = {
    "namespace": "team-a",
    "group": "coder",
    "stream": "tasks",
    "name": "inc-4711",
    "entry": "1796091406012-0",
    "correlation": "order-42",
    "view": "lag",
    "Idempotency-Key": "inc-4711",
}
"""Of each parameter that must be given, and of some others."""

_BORN, _DIED, _NOW = "2026-12-01T02:16:46.012000Z", "2026-12-01T02:16:46.374000Z", "2026-12-01T02:20:00Z"
_ENTRY, _LETTER, _UUID = NAMES["entry"], "1796091406374-0", "69bfbebc-1932-4f41-848e-61b3378140d6"
_ERROR = "ValueError: cannot read document 7"
_PLACE = {"namespace": "team-a", "group": "coder"}
_ONE = {"scanned": 1, "from": _LETTER, "to": _LETTER, "more": False, "cursor": None}
_SENT: dict[str, Any] = {
    "entry": _ENTRY,
    "at": _BORN,
    "size": 229,
    "id": _UUID,
    "from": "planner",
    "to": "coder",
    "type": "task_request",
    "correlationId": "order-42",
    "replyTo": None,
    "expiresAt": None,
    "key": None,
    "schemaVersion": None,
    "payload": {"document": 7},
    "signature": "Unsigned",
    "problem": None,
}
_GROUP: dict[str, Any] = {
    "namespace": "team-a",
    "name": "coder",
    "stream": "tasks",
    "known": True,
    "undelivered": 3,
    "pending": 1,
    "retrying": 0,
    "delayed": 0,
    "nextDue": None,
    "dead": 1,
    "backlog": 4,
    "exact": True,
    "oldestSeconds": 1.25,
    "arrivalRate": 2.0,
    "serviceRate": 4.0,
    "drainSeconds": 2.0,
    "consumers": {"wanted": 1, "running": 1},
    "ready": True,
    "reason": "Ready",
}
_UNKNOWN: dict[str, Any] = {
    "namespace": "team-a",
    "name": "results",
    "key": "{team-a.results}",
    "known": False,
    "length": None,
    "oldest": None,
    "rate": None,
    "admission": None,
    "unsettled": None,
    "limit": None,
    "historySeconds": None,
    "ready": False,
    "reason": "BackendUnavailable",
}
_LAG: dict[str, Any] = {
    "at": _NOW,
    "server": {"reachable": True, "role": "master", "usedMemory": 2_097_152, "maxMemory": None},
    "streams": [_UNKNOWN],
    "groups": [_GROUP],
}
_LETTERS = {
    **_ONE,
    **_PLACE,
    "total": 1,
    "letters": [
        {
            "letter": _LETTER,
            "origin": _ENTRY,
            "at": _DIED,
            "attempts": 5,
            "reason": "MaxDeliveries",
            "error": _ERROR,
            "message": {**_SENT, "entry": _LETTER, "at": _DIED},
        }
    ],
}
_LETTER_GROUPS = {
    **_ONE,
    **_PLACE,
    "total": 1,
    "groups": [
        {
            "reason": "MaxDeliveries",
            "error": "ValueError: cannot read document <n>",
            "count": 1,
            "first": _DIED,
            "last": _DIED,
            "sample": _UUID,
            "letter": _LETTER,
        }
    ],
}
_DEAD = {
    "group": "coder",
    "state": "Dead",
    "attempts": 5,
    "reason": "MaxDeliveries",
    "error": _ERROR,
    "letter": _LETTER,
}
_OF_STREAM = {"scanned": 1, "from": _ENTRY, "to": _ENTRY, "more": False, "cursor": None}
_ASKED = {"namespace": "team-a", "groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
_REPLAY: dict[str, Any] = {
    "namespace": "team-a",
    "name": "inc-4711",
    "uid": "2f0e1d7c-6a0a-4f8e-9d1b-3c9c5f7f6a11",
    "created": _NOW,
    "requestedBy": "jane",
    "phase": "Complete",
    "message": "1 of 1 matching messages moved",
    "spec": {"groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}, "reason": "INC-4711"},
    "status": {
        "observedGeneration": 1,
        "phase": "Complete",
        "matched": 1,
        "moved": 1,
        "handled": 1,
        "dead": 0,
    },
}
_STARTED = {**_REPLAY, "phase": "Pending", "message": "", "status": None}
_PREVIEW = {
    **_ONE,
    **_PLACE,
    "source": "DeadLetters",
    "total": 1,
    "matched": 1,
    "wouldMove": 1,
    "skipped": {},
    "first": _DIED,
    "last": _DIED,
    "seconds": 0.01,
    "sample": [{**_SENT, "entry": _LETTER, "at": _DIED, "payload": None}],
    "warnings": [],
}

REQUESTS: Final[Mapping[str, Any]] = {
    "start_replay": {**_ASKED, "reason": "INC-4711"},
    "change_replay": {"rate": 50},
}
"""The body of each call that has one."""

ANSWERS: Final[Mapping[tuple[str, int], Any]] = {
    ("get_lag", 200): _LAG,
    ("get_group_lag", 200): {**_GROUP, "at": _NOW},
    ("get_consumers", 200): {
        **_PLACE,
        "more": False,
        "consumers": [
            {
                "name": "coder-7d9f-x2x.mibkq1-7-0",
                "pod": "coder-7d9f-x2x",
                "pending": 1,
                "idleSeconds": 0.4,
                "holds": [{"entry": _ENTRY, "retry": False, "idleSeconds": 1.2, "deliveries": 1}],
            }
        ],
    },
    ("get_letters", 200): _LETTERS,
    ("get_letter_groups", 200): _LETTER_GROUPS,
    ("get_messages", 200): {**_OF_STREAM, "namespace": "team-a", "stream": "tasks", "messages": [_SENT]},
    ("get_message", 200): {**_SENT, "namespace": "team-a", "stream": "tasks", "groups": [_DEAD]},
    ("get_conversation", 200): {
        "namespace": "team-a",
        "correlationId": "order-42",
        "messages": [{**_SENT, "stream": "tasks"}],
        "streams": [{**_OF_STREAM, "stream": "tasks", "problem": None}],
        "more": False,
        "cursor": None,
    },
    ("get_events", 200): f"retry: 2000\n\nevent: lag\ndata: {json.dumps(_LAG)}\n\n",
    ("start_replay", 200): _PREVIEW,
    ("start_replay", 202): _STARTED,
    ("list_replays", 200): {"replays": [_REPLAY]},
    ("get_replay", 200): _REPLAY,
    ("change_replay", 200): {**_STARTED, "spec": {**_REPLAY["spec"], "rate": 50}},
}
"""The answer of each call, by its status."""

PROBLEMS: Final[Mapping[int, Refusal]] = {
    failure.status: failure
    for failure in (
        Refusal(HTTPStatus.BAD_REQUEST, "There was an error parsing the body", "send a body that is JSON"),
        failure_of(Unauthenticated("there is no token")),
        Refusal(
            HTTPStatus.FORBIDDEN,
            '"jane" cannot get resource "consumergroups/deadletters" in API group "agentstream.dev"'
            " in the namespace team-a",
            "ask for a Role with this rule; docs/api.md lists what each call needs",
        ),
        not_found(
            "ConsumerGroup team-a/nobody", "GET /queue/lag lists the streams and groups that there are"
        ),
        Refusal(
            HTTPStatus.CONFLICT,
            "another replay in team-a has the name inc-4711",
            "choose another name, or Idempotency-Key",
        ),
        Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body has more than 262,144 bytes", "send less at a time"
        ),
        Refusal(
            HTTPStatus.REQUEST_URI_TOO_LONG, "the query has more than 4,096 bytes", "ask for less at a time"
        ),
        invalid("query/cursor", "is the id of an entry, such as 1700000000000-0", "take it from an answer"),
        busy("4 searches of yours are under way"),
        Refusal(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "an error of this server",
            "its log says more; please report it",
        ),
        unavailable("Redis or Valkey does not answer: connection refused"),
    )
}
"""A problem of each status."""
