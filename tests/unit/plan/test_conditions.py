"""What plans say."""

from __future__ import annotations

import pytest

from agentstream_operator.plan.actions import (
    Action,
    CreateGroup,
    CreateStream,
    DeleteRoute,
    DeleteStream,
    DeleteUser,
    DestroyGroup,
    RecordOwner,
    SetRoute,
    SetUser,
)
from agentstream_operator.plan.conditions import IN_SYNC, REACHABLE, ConditionUpdate, with_ready
from agentstream_operator.resources.status import ConditionReason, ConditionType


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (CreateStream("k", {}), "create the stream k"),
        (RecordOwner("k", {}), "record the owner of k"),
        (CreateGroup("k", "g", "0"), "create the group g on k"),
        (DestroyGroup("k", "g"), "remove the group g from k"),
        (DeleteStream("k", (), only_if_empty=False), "delete the stream k"),
        (SetUser("u", (), ("secret",)), "write the user u"),
        (DeleteUser("u"), "remove the user u"),
        (SetRoute("r", "a", b""), "write the route of a"),
        (DeleteRoute("r", "a"), "remove the route of a"),
    ],
)
def test_every_action_has_words(action: Action, text: str) -> None:
    assert str(action) == text


def test_ready_gives_the_first_reason_that_explains_the_others() -> None:
    conflict = ConditionUpdate(ConditionType.CONFLICT, "True", ConditionReason.KEY_CLAIMED, "why")
    drift = ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.DRIFT)
    assert with_ready((REACHABLE, drift, conflict))[0] == ConditionUpdate(
        ConditionType.READY, "False", ConditionReason.KEY_CLAIMED, "why"
    )


def test_unhealthy_retention_does_not_make_a_resource_unready() -> None:
    full = ConditionUpdate(ConditionType.RETENTION_HEALTHY, "False", ConditionReason.ADMISSION_CLOSED)
    assert with_ready((REACHABLE, IN_SYNC, full))[0].status == "True"
