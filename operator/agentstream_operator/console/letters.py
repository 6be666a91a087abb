"""The pages of dead letters: what they died of, with what can be done about it, and one by one."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Final, NamedTuple

from agentstream_operator.console.pages import ShownPage
from agentstream_operator.console.visit import Visit
from agentstream_operator.queue_api.documents import LetterGroupItem, LetterGroupsAnswer, LettersAnswer

_LISTED: Final = "50"


class Died(NamedTuple):
    """Dead letters of one reason.

    Attributes:
        reason: why they are dead letters.
        letters: how many of those that were looked at.
        groups: those of one error each.
        until: when the last of them died: what dies later is not acted on.
    """

    reason: str
    letters: int
    groups: list[LetterGroupItem]
    until: datetime | None


async def grouped(visit: Visit) -> ShownPage:
    """Shows dead letters by reason and error, with the actions for each reason."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    path = f"/queue/deadletters/{namespace}/{name}/groups"
    found = await visit.api.get(path, LetterGroupsAnswer, {"cursor": visit.asked("cursor")})
    content = {"found": found, "died": by_reason(found), "place": (namespace, name)}
    return ShownPage("letters.html", f"Dead letters of {namespace}/{name}", content)


async def listed(visit: Visit) -> ShownPage:
    """Shows dead letters one by one, the newest first."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    query = {"cursor": visit.asked("cursor"), "limit": _LISTED}
    found = await visit.api.get(f"/queue/deadletters/{namespace}/{name}", LettersAnswer, query)
    content = {"found": found, "place": (namespace, name)}
    return ShownPage("letter_list.html", f"Dead letters of {namespace}/{name}", content)


def by_reason(found: LetterGroupsAnswer) -> list[Died]:
    """Joins letters of one reason, the most frequent reason first."""
    reasons: defaultdict[str, list[LetterGroupItem]] = defaultdict(list)
    for each in found.groups:
        reasons[each.reason].append(each)
    died = [
        Died(
            reason,
            sum(each.count for each in groups),
            groups,
            max((each.last for each in groups if each.last is not None), default=None),
        )
        for reason, groups in reasons.items()
    ]
    return sorted(died, key=lambda each: -each.letters)
