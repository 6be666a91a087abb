"""Collects the results of a run, and writes the report when there is one for each file.

A message is acknowledged when it stands in the journal, and the last one when the report is written and
all have been told: if this is killed before, the next process gets the message again and does the rest.
"""

from __future__ import annotations

import asyncio
import os

from analysis import Analysis
from journal import Journal
from places import JOURNAL, REPORT
from rendering import render

from agentstream import Agent

_FIELDS = Analysis.__dataclass_fields__.keys()


def write_report(journal: Journal) -> None:
    """Replaces the report in one step: nobody ever sees half of one."""
    results = journal.results.values()
    analyses = [Analysis(**{name: result[name] for name in _FIELDS}) for result in results]
    analysts = {result["path"]: result["by"] for result in results}
    fresh = REPORT.with_name(f".{REPORT.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(render(journal.run, journal.root, analyses, analysts))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(REPORT)


async def collect(agent: Agent, journal: Journal, stream: str) -> None:
    """Notes what comes on a stream; finishes the run with the message that completes it."""
    async for delivery in agent.stream_consume(stream):
        async with delivery:
            # only the event that starts a run does not say which
            journal.add({"run": delivery.entry, **delivery.message.payload})
            if journal.complete and not journal.finished:
                write_report(journal)
                finished = {"event": "finished", "run": journal.run, "report": str(REPORT)}
                await agent.send_message(to="broadcast", type="event", payload=finished)


async def main() -> None:
    """Collects until the process is told to end."""
    journal = Journal(JOURNAL)
    async with Agent.from_env() as agent, asyncio.TaskGroup() as streams:
        streams.create_task(collect(agent, journal, "results"))
        streams.create_task(collect(agent, journal, "events"))


if __name__ == "__main__":
    asyncio.run(main())
