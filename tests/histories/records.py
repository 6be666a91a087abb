"""What senders, consumers and the nemesis write down, each into a file of its own, and how a run ended.

Every process of the machine reads the same monotonic clock, so that records of different files can be
compared. The clock of the server, which leaps, takes no part.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="what", tag=str.lower):
    """One line. `t` is when it was written, in ns; `who` the process, such as `coder-0.3`."""

    t: int = 0
    who: str = ""


class Called(Record, frozen=True, kw_only=True):
    """A sender is about to send message `n`; `groups` are to have it, `work` says what its handlers do."""

    n: int
    stream: str
    groups: tuple[str, ...]
    key: str | None = None
    once: str | None = None
    work: Mapping[str, float] = {}


class Returned(Record, frozen=True, kw_only=True):
    """The call returned."""

    n: int
    entry: str


class Failed(Record, frozen=True, kw_only=True):
    """The call raised an error; where `doubt`, the server may have the message."""

    n: int
    error: str
    doubt: bool


class Claimed(Record, frozen=True, kw_only=True):
    """A receipt says that these groups have acknowledged message `n`."""

    n: int
    groups: tuple[str, ...]


class Began(Record, frozen=True, kw_only=True):
    """A handler starts: `d` numbers the deliveries of a process."""

    d: int
    group: str
    n: int
    entry: str
    attempt: int
    fence: int
    key: str | None = None


class Effect(Record, frozen=True, kw_only=True):
    """The handler of delivery `d` brings about an effect that must not be repeated."""

    d: int
    group: str
    effect: str


class Settling(Record, frozen=True, kw_only=True):
    """The handler has come to its end, and calls a verb: `ack`, `retry` or `dead_letter`."""

    d: int
    verb: str


class Settled(Record, frozen=True, kw_only=True):
    """The verb returned whether the process still held the message."""

    d: int
    held: bool


class Fault(Record, frozen=True, kw_only=True):
    """Something was broken from `since` to `t`.

    Attributes:
        kind: what, one of `Kind`, or `late` where a process found that it stood still.
        target: the process, or the group for `destroy` and the stream for `delete`; empty for all.
    """

    kind: str
    since: int
    target: str = ""


Line = Called | Returned | Failed | Claimed | Began | Effect | Settling | Settled | Fault


class Letter(msgspec.Struct, frozen=True):
    """A dead letter: the message, its entry on the main stream, why, and after how many attempts."""

    n: int
    entry: str
    reason: str
    attempts: int = 0


class GroupEnd(msgspec.Struct, frozen=True):
    """What the server says of a group in the end: what is left, what it has counted, its dead letters."""

    left: Mapping[str, int] = {}
    acked: int = 0
    skipped: int = 0
    dead: int = 0
    lost: int = 0
    letters: tuple[Letter, ...] = ()


class StreamEnd(msgspec.Struct, frozen=True):
    """What is on a stream in the end: `entries` by id with their messages, `added` by the server's count."""

    entries: Mapping[str, int] = {}
    added: int = 0
    groups: Mapping[str, GroupEnd] = {}


class History(msgspec.Struct, frozen=True):
    """A run: what was written down, in order, what there is in the end, and by which policy.

    Attributes:
        lease: seconds.
        max_deliveries: attempts.
    """

    lines: tuple[Line, ...]
    streams: Mapping[str, StreamEnd] = {}
    lease: float = 2.0
    max_deliveries: int = 5


class Recorder:
    """Appends to a file; a line is there even if the process is killed at the next moment."""

    def __init__(self, directory: Path, who: str) -> None:
        self.who = who
        self._encode = msgspec.json.Encoder().encode
        self._file = os.open(directory / f"{who}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, line: Line) -> None:
        """Writes a record, with the time and this process."""
        stamped = msgspec.structs.replace(line, t=time.monotonic_ns(), who=self.who)
        os.write(self._file, self._encode(stamped) + b"\n")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read(directory: Path) -> tuple[Line, ...]:
    """Reads what all processes wrote, in the order of time."""
    decoder = msgspec.json.Decoder(Line)
    lines: Iterable[bytes] = (
        line for path in sorted(directory.glob("*.jsonl")) for line in path.read_bytes().splitlines()
    )
    return tuple(sorted((decoder.decode(line) for line in lines), key=lambda record: record.t))
