"""The table of all drills of a run, at its end; see tests/faults."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what became of the messages."""
    reports = (report for some in terminalreporter.stats.values() for report in some)
    lines = sorted(
        value
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, value in report.user_properties
        if name == "drill"
    )
    if lines:
        from faults.drill import HEADER  # noqa: PLC0415 - only if there are any

        terminalreporter.section("what became of messages under faults")
        terminalreporter.write_line(HEADER)
        for line in lines:
            terminalreporter.write_line(line)
