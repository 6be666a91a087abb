"""The examples of the SDK's README about threads and traces, as they are printed."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentstream.sync import Agent
from agentstream.transport.client import Client
from support.topology import NAMESPACE, Topology
from support.tracing import exporter

PAGE = Path(__file__).parents[2] / "sdk" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def example(name: str) -> Any:
    """What an example of the page defines."""
    (text,) = (one for one in EXAMPLES if f"def {name}(" in one)
    names: dict[str, Any] = {}
    # annotations of handlers are resolved, so not in the way of this module
    exec(compile(text, PAGE, "exec", dont_inherit=True), names)
    return names[name]


async def test_iterating(topology: Topology, wire: Client) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    (text,) = (one for one in EXAMPLES if "def work(" in one)
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    command = [sys.executable, "-c", f"{text}\nwork()"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, env=environ, stderr=subprocess.PIPE, text=True
    )
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="task_request", payload={"text": "to be or"})
        async for result in planner.stream_consume("results"):
            async with result:
                assert result.payload == {"words": 3}
                break
    process.terminate()
    assert await asyncio.to_thread(process.communicate, timeout=10) == (None, "")
    assert process.returncode == 0


async def test_handlers(topology: Topology, planner: Agent, coder: Agent) -> None:
    serving = asyncio.create_task(asyncio.to_thread(example("serve"), coder))

    def ask() -> dict[str, Any]:
        with planner:
            return planner.request(to="coder", payload={"text": "to be"}).payload

    assert await asyncio.to_thread(ask) == {"words": 2, "first": True}
    coder.stop()
    await serving


async def test_traces(topology: Topology) -> None:
    exporter()
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        ordered, handled = await example("order")(planner), await example("handle")(coder)
    assert ordered == handled != f"{0:032x}"
