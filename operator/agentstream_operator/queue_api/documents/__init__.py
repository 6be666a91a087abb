"""The JSON documents of the HTTP API: every answer, in camelCase. What is unknown is null, and never 0.

A client ignores fields that it does not know: later versions have more of them.
"""

from agentstream_operator.queue_api.documents.common import Answer, Looked, Mistake, Problem
from agentstream_operator.queue_api.documents.consumers import ConsumerItem, ConsumersAnswer, HeldItem
from agentstream_operator.queue_api.documents.letters import (
    LetterGroupItem,
    LetterGroupsAnswer,
    LetterItem,
    LettersAnswer,
)
from agentstream_operator.queue_api.documents.messages import (
    ConversationAnswer,
    ConversationItem,
    MessageAnswer,
    MessageItem,
    MessagesAnswer,
    SearchedStream,
    Signature,
    StateInGroup,
)
from agentstream_operator.queue_api.documents.numbers import (
    ConditionItem,
    ConsumerCount,
    Delivered,
    GroupLagAnswer,
    GroupNumbers,
    LagAnswer,
    ServerNumbers,
    StreamNumbers,
)
from agentstream_operator.queue_api.documents.replays import (
    PreviewAnswer,
    ReplayAnswer,
    ReplayChange,
    ReplayRequest,
    ReplaysAnswer,
)

__all__ = [
    "Answer",
    "ConditionItem",
    "ConsumerCount",
    "ConsumerItem",
    "ConsumersAnswer",
    "ConversationAnswer",
    "ConversationItem",
    "Delivered",
    "GroupLagAnswer",
    "GroupNumbers",
    "HeldItem",
    "LagAnswer",
    "LetterGroupItem",
    "LetterGroupsAnswer",
    "LetterItem",
    "LettersAnswer",
    "Looked",
    "MessageAnswer",
    "MessageItem",
    "MessagesAnswer",
    "Mistake",
    "PreviewAnswer",
    "Problem",
    "ReplayAnswer",
    "ReplayChange",
    "ReplayRequest",
    "ReplaysAnswer",
    "SearchedStream",
    "ServerNumbers",
    "Signature",
    "StateInGroup",
    "StreamNumbers",
]
