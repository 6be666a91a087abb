"""Draws how consumers follow their work in the scenarios of tests/support/scenarios.py.

The decisions are the operator's, the time is simulated. Prints a table, and writes one picture of them all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from support.scenarios import SCENARIOS
from support.traffic import Scenario, Trace, simulate

_WORK, _WANTED, _READY = "#c9d3df", "#c2410c", "#1d4ed8"
_COLUMNS = 3


def table(traces: list[tuple[Scenario, Trace]]) -> str:
    """What came of each scenario, a line each."""
    names = f"{'scenario':32}{'most':>5}{'changes':>9}{'reversals':>11}"
    lines = [f"{names}{'longest wait':>14}{'drained at':>12}{'pod hours':>11}"]
    for scenario, trace in traces:
        drained = f"{trace.drained:.0f} s" if trace.drained is not None else "-"
        lines.append(
            f"{scenario.name:32}{trace.peak:5}{len(trace.changes):9}{trace.reversals:11}"
            f"{trace.longest:12.1f} s{drained:>12}{trace.pod_seconds / 3600:11.2f}"
        )
    return "\n".join(lines)


def draw(axes: Axes, scenario: Scenario, trace: Trace) -> None:
    """Consumers as lines, and the work behind them."""
    moments = trace.moments
    at = [moment.at for moment in moments]
    axes.step(at, [m.wanted for m in moments], where="post", color=_WANTED, linewidth=1.6, label="wanted")
    axes.plot(at, [m.ready for m in moments], color=_READY, linewidth=0.9, label="ready")
    axes.set_ylim(0, scenario.limits.maximum + 1)
    axes.set_title(
        f"{scenario.name}\n{trace.reversals} reversals, longest wait {trace.longest:.0f} s", fontsize=9
    )
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=7)
    work = axes.twinx()
    backlog = [moment.waiting + moment.pending for moment in moments]
    work.fill_between(at, backlog, step="post", color=_WORK, linewidth=0, label="waiting and running")
    work.set_ylim(0, max(1, *backlog) * 1.1)
    work.tick_params(labelsize=7)
    # the lines before the area
    axes.set_zorder(work.get_zorder() + 1)
    axes.patch.set_visible(False)


def main() -> None:
    """Parses the arguments, simulates, prints and draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("scaling.png"), help="default scaling.png")
    arguments = parser.parse_args()
    traces = [(scenario, simulate(scenario)) for scenario in SCENARIOS]
    print(table(traces))
    mpl.use("Agg")
    rows = -(-len(traces) // _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes, (scenario, trace) in zip(grid.flat, traces, strict=False):
        draw(axes, scenario, trace)
    for axes in grid.flat[len(traces) :]:
        axes.set_axis_off()
    legend = [
        mpl.lines.Line2D([], [], color=c, linewidth=w) for c, w in ((_WANTED, 2), (_READY, 2), (_WORK, 8))
    ]
    figure.legend(
        legend,
        ("consumers wanted", "consumers ready", "messages waiting and running (right)"),
        loc="outside upper center",
        ncols=3,
    )
    figure.savefig(arguments.picture, dpi=110)
    print(f"drawn in {arguments.picture}")


if __name__ == "__main__":
    main()
