"""Reads everything that the API shows from one server."""

from __future__ import annotations

from agentstream_operator.queue_api.browser import Browser
from agentstream_operator.queue_api.consumers import ConsumersReader
from agentstream_operator.queue_api.conversations import ConversationReader
from agentstream_operator.queue_api.finder import MessageFinder
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.queue_api.previews import PreviewReader
from agentstream_operator.queue_api.sources import Sources


def sources_of_server(lags: LagReader) -> Sources:
    """Returns what reads the declared resources of `lags`, and the server on which they are."""
    index, broker = lags.index, lags.broker
    return Sources(
        index,
        lags,
        PreviewReader(index, broker),
        Browser(index, broker),
        MessageFinder(index, broker),
        ConversationReader(index, broker),
        ConsumersReader(index, broker),
    )
