"""The function library loads once, and a newer revision stays."""

from __future__ import annotations

from agentstream.protocol import library
from agentstream.transport.client import Client
from support.servers import Server


async def test_a_present_library_is_not_loaded_again(server: Server, wire: Client) -> None:
    assert not await library.load(wire.call)


async def test_a_missing_library_is_loaded(server: Server, wire: Client) -> None:
    await wire.call("FUNCTION", "FLUSH")
    assert await library.load(wire.call)
    assert await wire.call("FCALL_RO", "as1_revision", 0) == library.revision()


async def test_a_newer_revision_is_never_replaced_by_an_older_one(server: Server, wire: Client) -> None:
    newer = library.source().replace("local REVISION = ", "local REVISION = 9", 1)
    await wire.call("FUNCTION", "LOAD", "REPLACE", newer)
    assert not await library.load(wire.call)
    assert int(await wire.call("FCALL_RO", "as1_revision", 0)) > library.revision()
