"""Routes come back as they were written, and nothing else passes for one."""

from __future__ import annotations

import pytest

from agentstream.errors import ProtocolError
from agentstream.protocol.routes import Consumes, Produces, Route, decode_route, encode_route


def test_a_route_comes_back_as_it_was_written() -> None:
    route = Route((Produces("news", "{n}", broadcast=True),), (Consumes("tasks", "{t}", "coder", lease=1),))
    assert decode_route(encode_route(route)) == route


def test_what_a_later_release_adds_is_ignored() -> None:
    assert decode_route(b'{"produces":[{"stream":"a","key":"b","later":1}]}').produces == (
        Produces("a", "b"),
    )


def test_what_is_no_route_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="not a route"):
        decode_route(b'{"produces":[{}]}')
