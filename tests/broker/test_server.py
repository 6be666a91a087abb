"""What the server is and can do is found out by trying, again for each process, and leaves nothing behind."""

from __future__ import annotations

import pytest
import redis

from agentstream.errors import AccessDenied, ConnectionLost
from agentstream.protocol import library
from agentstream_operator.broker.broker import Broker
from support.servers import Server, free_port


async def test_settings_and_capabilities_are_seen(server: Server, broker: Broker, admin: redis.Redis) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        seen = await broker.server()
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
    assert seen.eviction_policy == "allkeys-lru"
    # all of these servers count right after a trim
    assert seen.trusts_lag


async def test_a_probe_leaves_neither_key_nor_user(
    server: Server, broker: Broker, admin: redis.Redis
) -> None:
    assert admin.keys() == []
    assert admin.acl_users() == ["default"]


async def test_what_may_not_be_looked_at_is_unknown(server: Server, admin: redis.Redis) -> None:
    denied = ["-eval", "-config", "-acl"]
    admin.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", *denied])
    limited = await Broker.connect(
        server.url.replace("redis://", "redis://limited:any@"), installation="test"
    )
    seen = await limited.server()
    await limited.close()
    assert not seen.trusts_lag
    assert seen.eviction_policy == "noeviction"


async def test_connecting_loads_the_library(server: Server, admin: redis.Redis) -> None:
    admin.execute_command("FUNCTION", "FLUSH")
    await (await Broker.connect(server.url, installation="test")).close()
    assert admin.fcall_ro("as1_revision", 0) == library.revision()


async def test_connecting_works_while_memory_is_full(server: Server, admin: redis.Redis) -> None:
    admin.config_set("maxmemory", 1)
    connected = await Broker.connect(server.url, installation="test")
    seen = await connected.server()
    await connected.close()
    admin.config_set("maxmemory", 0)
    assert seen.trusts_lag


async def test_connecting_to_nobody_fails_and_leaves_nothing() -> None:
    with pytest.raises(ConnectionLost):
        await Broker.connect(f"redis://127.0.0.1:{free_port()}", installation="test")


async def test_a_wrong_password_is_refused_without_being_named(server: Server, admin: redis.Redis) -> None:
    with pytest.raises(AccessDenied) as refused:
        await Broker.connect(server.url.replace("redis://", "redis://who:hunter2@"), installation="test")
    assert "hunter2" not in str(refused.value)


async def test_a_process_that_took_over_is_noticed_and_made_ready(private_server: Server) -> None:
    broker = await Broker.connect(private_server.url, installation="test")
    before = await broker.server()
    private_server.restart()
    with private_server.admin() as admin:
        admin.execute_command("FUNCTION", "FLUSH")
        with pytest.raises(ConnectionLost):
            await broker.server()
        broker._trusts_lag = False
        after = await broker.server()
        assert admin.fcall_ro("as1_revision", 0) == library.revision()
    await broker.close()
    assert before.run_id != after.run_id
    assert after.trusts_lag
