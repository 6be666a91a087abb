"""Replies: whoever may reply may leave one without a lifetime; the operator gives it one."""

from __future__ import annotations

import redis

from agentstream.protocol.keys import reply_key
from support.operator import operator
from support.resources import KEY, a_stream
from support.servers import Server
from support.waiting import until

DAY = 86_400_000


async def test_replies_without_a_lifetime_get_one_and_nothing_else_does(
    server: Server, admin: redis.Redis
) -> None:
    immortal = [reply_key("test", "nobody", f"{number:032x}") for number in range(50)]
    for key in immortal:
        admin.xadd(key, {"m": "x"})
    mortal = reply_key("test", "nobody", "f" * 32)
    admin.xadd(mortal, {"m": "x"})
    admin.pexpire(mortal, 60_000)
    async with operator(server.url) as op:
        await op.put(a_stream())
        admin.xadd(KEY, {"m": "x"})
        await until(lambda: all(0 < admin.pttl(key) <= DAY for key in immortal))
        assert 0 < admin.pttl(mortal) <= 60_000
        assert {admin.pttl(key) for key in admin.scan_iter() if ":reply:" not in key} == {-1}
