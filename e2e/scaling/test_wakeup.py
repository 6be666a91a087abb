"""One message to a group that sleeps: how soon there is a consumer that has it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from harness.crew import Crew

ROUNDS = 10
ASLEEP = {"minReplicas": 0, "maxReplicas": 10, "targetBacklog": 100, "scaleDownAfter": "1s"}


def test_the_first_message_wakes_a_group(crew: Crew, tell: Callable[..., None]) -> None:
    crew.declare(autoscaling=ASLEEP)
    decided, started, read = [], [], []
    for number in range(ROUNDS):
        crew.asleep()
        crew.gone()
        crew.send()
        sent = crew.accepted[number]
        begun = crew.begun(number)
        (start,) = (note for note in crew.notes("started") if note.who == begun.who)
        wanted = next(change.at for change in crew.changes(sent) if change.wanted)
        decided.append(wanted - sent)
        started.append(start.at - sent)
        read.append(begun.at - sent)
    case = "one message to a sleeping group"
    for times, meaning in (
        (decided, "replicas are written"),
        (started, "the pod's process starts"),
        (read, "the message is read: 1.3 s, of which a pod alone takes 0.95 s"),
    ):
        tell(case, median(times), f"{meaning} (median of {ROUNDS})")
        tell(case, max(times), f"{meaning} (worst of {ROUNDS})")
    assert not crew.counts().lost
    assert median(decided) < 1
    assert median(read) < 5
