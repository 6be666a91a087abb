"""The synchronous face of the SDK, for programs without an event loop: `from agentstream.sync import Agent`.

It is the same agent, run by a thread of its own. Messages, errors, `Retry` and `Reject` are those of
`agentstream`.
"""

from __future__ import annotations

from agentstream.sync.agent import Agent
from agentstream.sync.delivery import Deliveries, Delivery, Once
from agentstream.sync.messenger import Notifications, Receipt

__all__ = ["Agent", "Deliveries", "Delivery", "Notifications", "Once", "Receipt"]
