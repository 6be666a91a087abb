"""A seed says what is sent and what is broken, always the same."""

from __future__ import annotations

from itertools import islice

import pytest

from histories.mutations import MUTATIONS, Mutation
from histories.plan import DESTRUCTION, Kind, make_plan, messages


def test_a_seed_always_makes_the_same_plan() -> None:
    assert make_plan(7, 60) == make_plan(7, 60)
    assert make_plan(7, 60) != make_plan(8, 60)


def test_a_sender_always_sends_the_same_messages() -> None:
    first, again, others = (list(islice(messages(seed, "planner-0", 1000, 0.1), 200)) for seed in (7, 7, 8))
    assert first == again != others
    assert [message["n"] for message in first] == list(range(1000, 1200))
    assert {message["stream"] for message in first} == {"tasks", "news"}


def test_every_kind_of_fault_comes_and_only_every_third_seed_destroys() -> None:
    kinds = [{step.kind for step in make_plan(seed, 600).steps} for seed in range(3)]
    assert kinds[0] == set(Kind)
    assert kinds[1] | kinds[2] == set(Kind) - DESTRUCTION


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_the_library_of_today(mutation: Mutation) -> None:
    assert mutation.old not in mutation.source()
