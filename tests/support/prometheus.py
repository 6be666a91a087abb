"""Prometheus and promtool: what the Makefile fetched, or what is installed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import EMBEDDED, HELMS, PROMETHEUS, ROOT
from support.servers import free_port

_FETCHED = ROOT / ".venv/prometheus/usr/bin"


def program(name: str) -> Path:
    """Finds `prometheus` or `promtool`; skips the test with a word that cannot be missed if there is none."""
    found = _FETCHED / name if (_FETCHED / name).exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"NO {name.upper()}, NEITHER ALERTS NOR DASHBOARDS ARE TESTED: run `make prometheus`")
    return Path(found)


def chart_rules(**settings: Any) -> dict[str, Any]:
    """Renders the chart's rules, of a release with the metrics server."""
    values = {
        **EMBEDDED,
        "metricsServer": {"enabled": True},
        "metrics": {"prometheusRule": {"enabled": True, **settings}},
    }
    (found,) = HELMS[0].render(values, knows=PROMETHEUS).of("PrometheusRule")
    spec: dict[str, Any] = found["spec"]
    return spec


def promtool(*arguments: str | Path) -> str:
    """Runs promtool. Returns what it prints; fails the test with it if promtool does."""
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """A Prometheus of the test's own, which scrapes and evaluates every second.

    Args:
        directory: for its data and its log.
        targets: ports on this machine that it scrapes, by job, with the labels of the target.
        rules: groups of rules, as in a PrometheusRule.
    """

    def __init__(
        self, directory: Path, targets: Mapping[str, tuple[int, Mapping[str, str]]], rules: Mapping[str, Any]
    ) -> None:
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        scrapes = [
            {
                "job_name": job,
                # as in the chart's ServiceMonitor
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": dict(labels)}],
            }
            for job, (port, labels) in targets.items()
        ]
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": scrapes}
        (directory / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self._directory / "prometheus.log").read_text()

    def start(self) -> None:
        """Starts the process; skips the test if there is no such program."""
        arguments = [
            f"--config.file={self._directory / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen([program("prometheus"), *arguments], stdout=log, stderr=log)

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def get(self, path: str, **parameters: str) -> Any:
        """Asks its HTTP API. Returns the data of the answer; None while it does not answer.

        Raises:
            AssertionError: it refuses the question.
        """
        return await asyncio.to_thread(self._get, path, parameters)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluates an expression now. Returns its series."""
        data = await self.get("query", query=expression)
        found: list[dict[str, Any]] = data["result"] if data is not None else []
        return found

    async def alerts(self) -> set[tuple[str, str]]:
        """Returns name and group of every alert that fires."""
        data = await self.get("alerts")
        return {
            (alert["labels"]["alertname"], alert["labels"].get("group", ""))
            for alert in (data or {}).get("alerts", ())
            if alert["state"] == "firing"
        }

    def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    pytest.fail(f"{parameters}: {error.read().decode()}")
        except OSError:
            assert self._process is not None
            assert self._process.poll() is None, self.log
        return None
