"""The pages of a message and of a conversation."""

from __future__ import annotations

from agentstream_operator.console.pages import ShownPage
from agentstream_operator.console.visit import Visit
from agentstream_operator.queue_api.documents import ConversationAnswer, MessageAnswer


async def message(visit: Visit) -> ShownPage:
    """Shows a message, and what became of it in each group."""
    namespace, stream, entry = (visit.places[each] for each in ("namespace", "stream", "entry"))
    found = await visit.api.get(f"/queue/messages/{namespace}/{stream}/{entry}", MessageAnswer)
    return ShownPage("message.html", f"Message {(found.id or entry)[:8]}", {"found": found})


async def conversation(visit: Visit) -> ShownPage:
    """Shows the messages of a conversation as a line of time."""
    namespace, correlation = visit.places["namespace"], visit.places["correlation"]
    path = f"/queue/conversations/{namespace}/{correlation}"
    found = await visit.api.get(path, ConversationAnswer, {"cursor": visit.asked("cursor")})
    return ShownPage("conversation.html", "Conversation", {"found": found})
