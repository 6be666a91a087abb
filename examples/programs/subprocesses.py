"""A worker that runs programs, and computes, for longer than its lease, and keeps its messages."""

import asyncio
import logging
import sys
import time

import msgspec

from agentstream import Agent, Reject

agent = Agent.from_env()
log = logging.getLogger(__name__)


class Job(msgspec.Struct):
    """A program to run, or work that blocks the event loop.

    Attributes:
        n: number of the job.
        program: Python source that a subprocess runs.
        computes: seconds for which the handler computes without giving way to other tasks.
    """

    n: int
    program: str = ""
    computes: float = 0.0


@agent.on("event")
async def work(job: Job) -> None:
    """Runs one job."""
    log.info("began %d", job.n)
    if job.program:
        await run_program(job.program)
    ends = time.monotonic() + job.computes
    while time.monotonic() < ends:
        pass  # the lease is renewed by a thread meanwhile
    log.info("handled %d", job.n)


async def run_program(source: str) -> None:
    """Runs a program, and ends it if the message is lost or its deadline is over."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        # it would fail in the same way again
        log.warning("the program failed: %s", errors.decode(errors="replace"))
        raise Reject("ProgramFailed")


async def main() -> None:
    """Works until SIGTERM."""
    async with agent:
        log.info("ready")
        await agent.run(concurrency=4)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main())
