"""A browser that looks at the console of an `agentstream dev` whose consumer fails until it is mended."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from playwright.async_api import Browser, Page

from support.dev import Dev

MESSAGES = 6
FAILING = """\
import asyncio, pathlib
from agentstream import Agent

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                if not pathlib.Path("fixed").exists():
                    raise ValueError("<script>document.title = 'hacked'</script> 7")

asyncio.run(main())
"""


@dataclass
class Watched:
    """The console of a run, and a browser that looks at it."""

    dev: Dev
    browser: Browser
    url: str
    token: str
    complaints: list[str]

    async def page(self, **how: object) -> Page:
        """Opens a page of a browser that nobody used before, and writes down what it complains of."""
        context = await self.browser.new_context(**how)  # type: ignore[arg-type]
        page = await context.new_page()
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    async def link(self) -> str:
        """Makes a link that logs a browser in."""
        async with httpx.AsyncClient() as http:
            headers = {"Authorization": f"Bearer {self.token}"}
            answer = await http.post(f"{self.url}/console/code", headers=headers)
        return f"{self.url}{answer.json()['path']}"

    async def dead(self) -> int:
        async with httpx.AsyncClient() as http:
            headers = {"Authorization": f"Bearer {self.token}"}
            answer = await http.get(f"{self.url}/queue/lag", headers=headers)
        return sum(group["dead"] or 0 for group in answer.json()["groups"])
