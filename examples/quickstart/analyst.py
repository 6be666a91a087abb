"""Answers requests: reads one file, computes what there is to know of it, tells the reporter.

As many of these run as the backlog asks for, down to none. They keep nothing between two requests: what
one had not acknowledged when it was killed is delivered again, to another or to its successor.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path

from analysis import Analysis, analyse, language_of

from agentstream import Agent

NAME = f"{os.environ.get('AGENTSTREAM_POD') or os.uname().nodename}, process {os.getpid()}"


def read(root: str, path: str) -> Analysis:
    """Analyses a file; one that cannot be read is a result, too."""
    try:
        return analyse(path, Path(root, path).read_bytes())
    except OSError as error:
        language = language_of(path)
        return Analysis(path, language.name if language else "", problem=error.strerror or str(error))


async def main() -> None:
    """Answers requests until the process is told to end."""
    async with Agent.from_env() as agent:
        # few at a time, so that the other analysts find some, too
        async for delivery in agent.stream_consume("requests", concurrency=2):
            async with delivery:
                request = delivery.message
                analysis = await asyncio.to_thread(read, request.payload["root"], request.payload["path"])
                await agent.send_message(
                    to="reporter",
                    type="task_result",
                    correlation_id=request.id,
                    payload={"run": request.payload["run"], "by": NAME, **asdict(analysis)},
                )


if __name__ == "__main__":
    asyncio.run(main())
