"""Commands and replies are found in a stream of bytes, however it is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.testing.faults import Frames

FRAMES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":7\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    b"*2\r\n*1\r\n*0\r\n*2\r\n:1\r\n$1\r\n\n\r\n",
    b"PING\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(9999999999999999999\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"!5\r\nERR x\r\n",
    b"~1\r\n+a\r\n",
    b">2\r\n+message\r\n*1\r\n:1\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
    b"%0\r\n",
    b"|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n",
]


@pytest.mark.parametrize("frame", FRAMES)
def test_each_kind_of_value_is_one_frame(frame: bytes) -> None:
    assert Frames().feed(frame) == [frame]


@given(frames=st.lists(st.sampled_from(FRAMES)), data=st.data())
def test_frames_are_the_same_in_whatever_pieces_they_come(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = Frames()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == frames
