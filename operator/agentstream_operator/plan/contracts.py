"""The contracts of a stream: what is to be written for its agents, and whether it can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentstream.protocol.contracts import contracts_digest
from agentstream_operator.plan.actions import Action, SetContracts
from agentstream_operator.plan.findings import ConditionUpdate
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.status import ConditionReason, ConditionType


@dataclass(frozen=True, slots=True)
class Published:
    """What agents are to know of contracts.

    Attributes:
        digest: changes whenever they do; empty if there are none.
        schemas: JSON Schemas by `<type>@<version>`.
    """

    digest: str
    schemas: Mapping[str, str]


def published(stream: AgentStream) -> Published:
    """What is to be written for the agents of a stream."""
    schemas = {contract.field: contract.json_schema.text for contract in stream.spec.contracts}
    return Published(contracts_digest(schemas), schemas)


def invalid_contract(stream: AgentStream) -> ConditionUpdate | None:
    """What to say of the first contract that is none; None if all are."""
    for position, contract in enumerate(stream.spec.contracts):
        if contract.problem is not None:
            message = f"spec.contracts[{position}]: {contract.problem}"
            return ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.CONTRACT_INVALID, message)
    return None


def write_contracts(stream: AgentStream, seen: StreamSeen) -> tuple[Action, ...]:
    """What is to be done for the contracts to be on the server as they are declared."""
    wanted = published(stream)
    if wanted.digest == (seen.contracts or ""):
        return ()
    return (SetContracts(stream.stream_key, wanted.digest, wanted.schemas),)


def digest_after(actions: tuple[Action, ...], seen: StreamSeen) -> str:
    """The digest of the contracts that are on the server once a plan is carried out."""
    return next(
        (action.digest for action in actions if isinstance(action, SetContracts)), seen.contracts or ""
    )
