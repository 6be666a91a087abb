"""The connection: what breaks it, and what its callers get to know."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentstream.endpoint import Endpoint
from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused, SettingsError
from agentstream.wire import Wire
from support.servers import Server


async def test_a_closed_connection_takes_no_more_commands(server: Server) -> None:
    wire = Wire(lambda: Endpoint(server.url), name="closing")
    assert await wire.call("PING") == b"PONG"
    blocked = asyncio.create_task(wire.call("BLPOP", "{a}", 10))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(wire.call("PING"))
    await asyncio.sleep(0)
    await wire.close()
    errors = await asyncio.gather(blocked, waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ConnectionLost, ConnectionLost]
    with pytest.raises(ConnectionLost, match="is closed"):
        await wire.call("PING")


async def test_a_caller_that_is_gone_leaves_the_replies_of_others_in_order(wire: Wire) -> None:
    calls = [asyncio.create_task(wire.call("ECHO", n)) for n in range(5)]
    refused = asyncio.create_task(wire.call("NOPE"))
    await asyncio.sleep(0)
    for gone in (calls[1], refused):
        gone.cancel()
    assert [await call for n, call in enumerate(calls) if n != 1] == [b"0", b"2", b"3", b"4"]


async def test_an_error_reply_is_an_error_of_its_own_command_only(wire: Wire) -> None:
    refused, echoed = await asyncio.gather(wire.call("NOPE"), wire.call("ECHO", 1), return_exceptions=True)
    assert isinstance(refused, ServerRefused)
    assert echoed == b"1"


async def test_a_right_that_a_function_lacks_is_access_denied(server: Server, wire: Wire) -> None:
    await wire.call("FCALL", "as1_create_stream", 1, "{a}", "{a}:meta", "name", "a")
    await wire.call("ACL", "SETUSER", "agent", "on", ">secret", "~*", "-@all", "+fcall", "+get")
    user = Wire(lambda: Endpoint(server.url, "agent", "secret"), name="agent")
    with pytest.raises(AccessDenied):
        await user.call("FCALL", "as1_add", 1, "{a}", "{a}:gate", "", 0, "m", "1")
    await user.close()


@pytest.mark.parametrize("url", ["http://host", "redis://host:port"])
async def test_an_address_that_is_none_is_an_error_of_the_settings(url: str) -> None:
    wire = Wire(lambda: Endpoint(url), name="lost")
    with pytest.raises(SettingsError, match="no address of a server"):
        await wire.call("PING")
    await wire.close()


async def test_settings_that_cannot_be_read_are_an_error_until_they_can(server: Server) -> None:
    found: list[Endpoint] = []

    def endpoint() -> Endpoint:
        if not found:
            raise SettingsError("nothing is mounted")
        return found[0]

    wire = Wire(endpoint, name="waiting")
    with pytest.raises(SettingsError):
        await wire.call("PING")
    found.append(Endpoint(server.url))
    assert await wire.call("PING") == b"PONG"
    await wire.close()


async def test_an_authority_that_cannot_be_read_is_a_lost_connection(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("redis://", "rediss://")
    wire = Wire(lambda: Endpoint(url, ca_file=str(tmp_path / "ca.crt")), name="tls")
    with pytest.raises(ConnectionLost):
        await wire.call("PING")
    await wire.close()
