"""Dead letters: one by one, and by what they died of."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from agentstream_operator.queue_api.access import LETTERS, Cursor, GroupName, Namespace, declared, of_group
from agentstream_operator.queue_api.documents import LetterGroupsAnswer, LettersAnswer
from agentstream_operator.queue_api.limits import SEARCH
from agentstream_operator.queue_api.sources import SourcesOf

routes = APIRouter(prefix="/queue/deadletters/{namespace}/{group}", tags=["dead letters"])


@routes.get(
    "",
    summary="Dead letters",
    dependencies=[of_group(LETTERS), SEARCH],
    openapi_extra=declared(LETTERS),
)
async def get_letters(
    sources: SourcesOf,
    namespace: Namespace,
    group: GroupName,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 50,
    cursor: Cursor = None,
) -> LettersAnswer:
    """Returns dead letters of a group with their messages, the newest first."""
    return await sources.browser.letters(sources.group(namespace, group), limit, cursor)


@routes.get(
    "/groups",
    summary="Dead letters by what they died of",
    dependencies=[of_group(LETTERS), SEARCH],
    openapi_extra=declared(LETTERS),
)
async def get_letter_groups(
    sources: SourcesOf, namespace: Namespace, group: GroupName, cursor: Cursor = None
) -> LetterGroupsAnswer:
    """Groups dead letters by their reason, and by their error without its numbers and ids.

    Looks at the newest ones for half a second, and says how many those were; `cursor` goes on from there.
    """
    return await sources.browser.letter_groups(sources.group(namespace, group), cursor)
