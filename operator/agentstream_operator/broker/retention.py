"""One pass of the janitor over a stream: due retries, gone consumers, checkpoints, trimming and admission."""

from __future__ import annotations

import msgspec

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.plan.observed import JanitorReport
from agentstream_operator.plan.retention import JanitorSpec

LIMIT = 100_000
"""The most entries that one call removes: some ms, during which the server does nothing else."""

_decoder = msgspec.json.Decoder(JanitorReport)


async def clean(connection: BrokerClient, spec: JanitorSpec, *, trusts_lag: bool) -> JanitorReport:
    """Does a pass, again and again while there is more to do at once, and adds up what it did.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    declared = [value for group in spec.groups for value in group]
    total: JanitorReport | None = None
    while total is None or total.more:
        reply = await connection.function(
            "as1_janitor",
            spec.key,
            StreamKeys(spec.key).base,
            *(spec.min_age, spec.max_length, spec.max_bytes, spec.on_full, LIMIT),
            *(int(trusts_lag), int(spec.broadcast)),
            *declared,
        )
        report = _decoder.decode(reply)
        total = report if total is None else _added(total, report)
    return total


def _added(before: JanitorReport, latest: JanitorReport) -> JanitorReport:
    return msgspec.structs.replace(
        latest,
        trimmed=before.trimmed + latest.trimmed,
        overrun=before.overrun + latest.overrun,
        moved=before.moved + latest.moved,
        expired=before.expired + latest.expired,
        forgotten=before.forgotten + latest.forgotten,
        shortened=before.shortened or latest.shortened,
    )
