"""Resources as the tests declare them."""

from __future__ import annotations

from typing import Any

from harness.images import QUICKSTART

API_VERSION = "agentstream.dev/v1alpha1"


def a_stream(name: str, **spec: Any) -> dict[str, Any]:
    """An AgentStream; fields of the spec in the API's spelling."""
    return {"apiVersion": API_VERSION, "kind": "AgentStream", "metadata": {"name": name}, "spec": spec}


def a_group(name: str, stream: str, **spec: Any) -> dict[str, Any]:
    """A ConsumerGroup of a stream; further fields of the spec in the API's spelling."""
    spec = {"streamRef": {"name": stream}, **spec}
    return {"apiVersion": API_VERSION, "kind": "ConsumerGroup", "metadata": {"name": name}, "spec": spec}


def a_replay(name: str, group: str, **spec: Any) -> dict[str, Any]:
    """A StreamReplay of the stream of a group; further fields of the spec in the API's spelling."""
    spec = {"groupRef": {"name": group}, "from": {"source": "Stream"}, **spec}
    return {"apiVersion": API_VERSION, "kind": "StreamReplay", "metadata": {"name": name}, "spec": spec}


def a_template(*command: str, image: str = QUICKSTART, **more: Any) -> dict[str, Any]:
    """The template of pods of one container; fields of their spec in the API's spelling."""
    container = {"name": "agent", "image": image, "imagePullPolicy": "IfNotPresent", "command": list(command)}
    return {"spec": {"containers": [container], **more}}


# Consumes and acknowledges whatever comes.
CONSUME = """\
import asyncio, sys
from agentstream import Agent

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume(sys.argv[1]):
            async with delivery:
                print(delivery.message.payload, flush=True)

asyncio.run(main())
"""


def a_consumer(stream: str) -> dict[str, Any]:
    """The template of pods that acknowledge what comes on a stream."""
    return a_template("python", "-c", CONSUME, stream)
