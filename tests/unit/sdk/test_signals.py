"""Handlers of signals act in the process that installed them; its children behave as without them."""

from __future__ import annotations

import subprocess
import sys

import pytest

# what stands around a fork: nothing, or the handlers of one of the two agents
PROGRAM = """
import asyncio, contextlib, multiprocessing, os, signal, sys, threading, time
from agentstream.signals import on_signal, on_termination
told = []
def child(pipe):
    pipe.send([repr(signal.getsignal(n)).partition(" at ")[0] for n in (signal.SIGTERM, signal.SIGINT)])
    while True: time.sleep(60)
def forked(number):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    handlers = ours.recv()
    os.kill(process.pid, number)
    process.join(10 if number == signal.SIGTERM else 1)
    print(handlers, process.exitcode, told)
    process.kill()
def in_thread(*args):
    thread = threading.Thread(target=forked, args=args)
    thread.start()
    thread.join()
async def main(around, how, number):
    with around(told.append):
        how(number)
arounds = {{"nothing": contextlib.nullcontext, "sync": on_signal, "async": on_termination}}
around, how, number = arounds["{around}"], {how}, {number}
asyncio.run(main(around, how, number))
print("parent", told)
"""


def ran(around: str, how: str, number: str) -> str:
    code = PROGRAM.format(around=around, how=how, number=f"signal.{number}")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("how", ["forked", "in_thread"])
@pytest.mark.parametrize("around", ["sync", "async"])
def test_a_child_is_terminated_by_its_parent(around: str, how: str) -> None:
    assert ran(around, how, "SIGTERM").splitlines()[0].endswith("-15 []")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("around", ["sync", "async"])
def test_a_child_behaves_as_without_us(around: str, number: str) -> None:
    assert ran(around, "forked", number) == ran("nothing", "forked", number)


def test_a_signal_of_the_parent_is_its_own_after_a_fork() -> None:
    code = """
import os, signal
from agentstream.signals import on_signal
told = []
with on_signal(told.append):
    if not os.fork():
        os._exit(0)
    os.wait()
    signal.raise_signal(signal.SIGTERM)
    print(told == [signal.SIGTERM], signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "True"]
