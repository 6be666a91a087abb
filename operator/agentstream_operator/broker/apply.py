"""Does one action that was decided on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.acl import Users
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.plan.actions import (
    Action,
    CreateGroup,
    CreateStream,
    DeleteRoute,
    DeleteStream,
    DeleteUser,
    DestroyGroup,
    RecordOwner,
    SetContracts,
    SetRoute,
    SetUser,
)


@dataclass(frozen=True, slots=True)
class Applied:
    """What an action came to.

    Attributes:
        changed: whether something was made that was not there, or removed that was; overwriting counts, too.
        not_empty: a stream that was to be deleted only if it is empty is not, and all of it stays.
        fingerprint: of a user's rules as they are now; see `Broker.users`.
    """

    changed: bool
    not_empty: bool = False
    fingerprint: str | None = None


async def apply(connection: BrokerClient, users: Users, action: Action) -> Applied:  # noqa: C901 - one per action
    """Does the action.

    Raises:
        AccessNotEnforced: as `Users.set`.
        AgentStreamError: as `Wire.call`.
    """
    match action:
        case CreateStream(key, owner):
            changed = await connection.function("as1_create_stream", key, StreamKeys(key).meta, *_flat(owner))
        case RecordOwner(key, owner):
            await connection.call("HSET", StreamKeys(key).meta, *_flat(owner))
            changed = True
        case SetContracts(key, digest, schemas):
            contracts = StreamKeys(key).contracts
            changed = await connection.function("as1_set_contracts", key, contracts, digest, *_flat(schemas))
        case CreateGroup(key, group, start):
            changed = await connection.function("as1_create_group", key, StreamKeys(key).base, group, start)
        case DestroyGroup(key, group):
            changed = await connection.function("as1_destroy_group", key, StreamKeys(key).base, group)
        case DeleteStream(key, groups, only_if_empty):
            changed = await connection.function(
                "as1_delete_stream", key, StreamKeys(key).base, int(only_if_empty), *groups
            )
            return Applied(bool(changed), not_empty=not changed)
        case SetUser():
            return Applied(changed=True, fingerprint=await users.set(action))
        case DeleteUser(name):
            changed = await users.delete(name)
        case SetRoute(routes_key, agent, route):
            await connection.call("HSET", routes_key, agent, route)
            changed = True
        case DeleteRoute(routes_key, agent):
            changed = await connection.call("HDEL", routes_key, agent)
    return Applied(bool(changed))


def _flat(fields: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(text for item in fields.items() for text in item)
