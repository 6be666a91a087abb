"""The console, as a browser without scripts sees it, over the port that `agentstream console` forwards."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from harness.kubectl import Kubectl

_PROGRAM = str(Path(sys.executable).with_name("agentstream"))


class Console:
    """Pages of the console.

    Args:
        browser: is logged in.
    """

    def __init__(self, browser: httpx.Client) -> None:
        self._browser = browser

    def page(self, path: str = "/console") -> str:
        """The text of a page, without what is only for browsers; also that of one that says what is wrong."""
        found = re.sub(r"<(script|style)\b.*?</\1>", "", self._browser.get(path).text, flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())


@contextmanager
def a_console(kubectl: Kubectl) -> Iterator[Console]:
    """Logs a browser in, as `agentstream console` does."""
    forward: subprocess.Popen[str] = kubectl.machine.start(
        _PROGRAM, "console", "--no-open", "--namespace", kubectl.namespace, kubeconfig=kubectl.kubeconfig
    )
    try:
        assert forward.stdout is not None
        link = forward.stdout.readline().strip()
        place = urlsplit(link)
        # the certificate is the release's own
        with httpx.Client(
            base_url=f"{place.scheme}://{place.netloc}", verify=False, follow_redirects=True, timeout=30
        ) as browser:
            browser.get(link).raise_for_status()
            yield Console(browser)
    finally:
        forward.terminate()
        forward.wait()
        if forward.stdout is not None:
            forward.stdout.close()
