"""Configures logging of the services: text lines, or JSON for log collectors."""

from __future__ import annotations

import logging
import sys
import time

from pythonjsonlogger.json import JsonFormatter

from agentstream.printable import PrintableRecords

_QUIET = ("kopf", "kubernetes", "aiohttp", "uvicorn")


def configure(style: str) -> None:
    """Sends logs to standard error, as `text` or `json`; replaces an earlier configuration."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        formatter: logging.Formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names
        )
    else:
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler.setFormatter(formatter)
    # what agents and tenants wrote must not look like a line of its own
    handler.addFilter(PrintableRecords())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # it warns that Kopf does not handle the signals, which the service does
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
