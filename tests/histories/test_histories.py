"""Real processes, real faults: what they wrote down breaks no promise; planted mistakes are found.

`make histories` runs more seeds, for longer.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from histories.mutations import MUTATIONS, Mutation
from histories.plan import Kind, make_plan
from histories.run import run
from support.servers import Build, builds

DURATION = 12.0
# what is broken beside each other in a run; each kind is in one
TOGETHER = {
    "processes": (Kind.KILL, Kind.TERMINATE, Kind.BLOCK),
    "network": (Kind.CUT, Kind.LOSE, Kind.PAUSE),
    "server": (Kind.SERVER, Kind.LOSE, Kind.KILL),
    "data": (Kind.FLUSH, Kind.KILL, Kind.CUT),
}
SEEDS_TO_TRY = 4


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("build", builds(), ids=lambda build: build.name)
async def test_no_promise_is_broken(tmp_path: Path, build: Build, name: str) -> None:
    outcome = await run(make_plan(1, DURATION, TOGETHER[name]), tmp_path, build=build)
    assert not outcome.violations, f"{outcome}\n" + "\n".join(map(str, outcome.violations))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
async def test_a_planted_mistake_is_found(tmp_path: Path, mutation: Mutation) -> None:
    found = set()
    for seed in itertools.count(1):
        directory = tmp_path / str(seed)
        directory.mkdir()
        outcome = await run(mutation.plan(seed), directory, source=mutation.source())
        found |= {violation.promise for violation in outcome.violations}
        # when a process is stopped is not the seed's alone
        if found & set(mutation.breaks) or seed == SEEDS_TO_TRY:
            break
    assert found & set(mutation.breaks), found
