"""The synchronous face of the SDK, for programs without an event loop: `from agentstream.sync import Agent`.

It is the same agent, run by a thread of its own. Messages, errors, `Retry` and `Reject` are those of
`agentstream`.
"""

from __future__ import annotations

from agentstream.sync.agent import SyncAgent as Agent
from agentstream.sync.agent import SyncNotifications as Notifications
from agentstream.sync.agent import SyncReceipt as Receipt
from agentstream.sync.delivery import SyncDeliveries as Deliveries
from agentstream.sync.delivery import SyncDelivery as Delivery
from agentstream.sync.delivery import SyncOnce as Once

__all__ = ["Agent", "Deliveries", "Delivery", "Notifications", "Once", "Receipt"]
