"""A browser, and an `agentstream dev` whose consumer fails until it is mended."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from support.browsing import FAILING, MESSAGES, Watched
from support.dev import Dev, a_group, a_stream
from support.waiting import until


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in CHROMIUM")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def site(tmp_path: Path, browser: Browser) -> AsyncIterator[Watched]:
    """A run with six dead letters."""
    dev = Dev(tmp_path)
    (tmp_path / "fails.py").write_text(FAILING)
    (tmp_path / "m.yaml").write_text(
        a_stream("tasks", "producers: [boss]")
        + a_stream("results")
        + a_group("coder", "tasks", "python", "fails.py", scale="replicas: 1\n  delivery: {maxDeliveries: 1}")
        + a_group("boss", "results", "python", "boss.py", str(MESSAGES))
    )
    await dev.start("m.yaml")
    try:
        await dev.ready()
        found = json.loads((tmp_path / ".agentstream" / "console").read_text())
        site = Watched(dev, browser, found["url"], found["token"], [])

        async def all_died() -> bool:
            return await site.dead() == MESSAGES

        await until(all_died)
        yield site
    finally:
        for context in browser.contexts:
            await context.close()
        await dev.close()
    assert site.complaints == []
