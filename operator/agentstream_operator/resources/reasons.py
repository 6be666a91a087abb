"""The one vocabulary of condition types and reasons: for conditions, events, metrics labels and the docs.

`docs/reference/conditions.md` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class ConditionType(StrEnum):
    """What conditions are about, in the order in which a status lists them."""

    READY = "Ready"
    BACKEND_REACHABLE = "BackendReachable"
    SYNCED = "Synced"
    CREDENTIALS_SYNCED = "CredentialsSynced"
    RETENTION_HEALTHY = "RetentionHealthy"
    STREAM_READY = "StreamReady"
    LAG_KNOWN = "LagKnown"
    SCALING_ACTIVE = "ScalingActive"
    CONFLICT = "Conflict"
    STALLED = "Stalled"
    DEAD_LETTERING = "DeadLettering"


class ConditionDoc(NamedTuple):
    """What a condition says, and the status it has when all is well."""

    meaning: str
    healthy: str


CONDITIONS: Mapping[ConditionType, ConditionDoc] = MappingProxyType(
    {
        ConditionType.READY: ConditionDoc(
            "The summary: the resource is in effect for its latest generation, checked recently.", "True"
        ),
        ConditionType.BACKEND_REACHABLE: ConditionDoc("The Redis or Valkey server answers.", "True"),
        ConditionType.SYNCED: ConditionDoc("What is declared is what is on the server.", "True"),
        ConditionType.CREDENTIALS_SYNCED: ConditionDoc(
            "The agents' users, their rules and their Secrets are in place.", "True"
        ),
        ConditionType.RETENTION_HEALTHY: ConditionDoc(
            "Messages are kept as long as declared, and adding is not refused.", "True"
        ),
        ConditionType.STREAM_READY: ConditionDoc("The group's stream exists and is usable.", "True"),
        ConditionType.LAG_KNOWN: ConditionDoc("The number of waiting messages is known.", "True"),
        ConditionType.SCALING_ACTIVE: ConditionDoc("The number of consumers follows the backlog.", "True"),
        ConditionType.CONFLICT: ConditionDoc(
            "Something else already has what this resource claims.", "False"
        ),
        ConditionType.STALLED: ConditionDoc("Messages wait, and none is being settled.", "False"),
        ConditionType.DEAD_LETTERING: ConditionDoc("Messages have been given up.", "False"),
    }
)


class ConditionReason(StrEnum):
    """Why a condition has its status, or what an event tells. Explained in `REASONS`."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    PAUSED = "Paused"
    OBSERVE_ONLY = "ObserveOnly"
    REACHABLE = "Reachable"
    BACKEND_UNAVAILABLE = "BackendUnavailable"
    SERVER_RESTARTED = "ServerRestarted"
    EVICTION_POLICY_WRONG = "EvictionPolicyWrong"
    IN_SYNC = "InSync"
    DRIFT = "Drift"
    NO_CONFLICT = "NoConflict"
    WRONG_TYPE = "WrongType"
    KEY_CLAIMED = "KeyClaimed"
    GROUP_CLAIMED = "GroupClaimed"
    KEY_NOT_ALLOWED = "KeyNotAllowed"
    CHILD_NOT_OURS = "ChildNotOurs"
    TEMPLATE_REFUSED = "TemplateRefused"
    DEPLOYMENT_MISSING = "DeploymentMissing"
    DEPLOYMENT_CLAIMED = "DeploymentClaimed"
    STREAM_MISSING = "StreamMissing"
    STREAM_CREATED = "StreamCreated"
    STREAM_ADOPTED = "StreamAdopted"
    STREAM_RECREATED = "StreamRecreated"
    STREAM_DELETED = "StreamDeleted"
    GROUP_CREATED = "GroupCreated"
    GROUP_RESTORED = "GroupRestored"
    GROUP_DELETED = "GroupDeleted"
    DATA_LOST = "DataLost"
    RETAINED = "Retained"
    RETAINED_NOT_EMPTY = "RetainedNotEmpty"
    CREDENTIALS_APPLIED = "CredentialsApplied"
    CREDENTIALS_RESTORED = "CredentialsRestored"
    CREDENTIALS_FAILED = "CredentialsFailed"
    CONTRACT_INVALID = "ContractInvalid"
    SIGNING_KEY_MADE = "SigningKeyMade"
    SIGNING_KEYS_LOST = "SigningKeysLost"
    WITHIN_LIMITS = "WithinLimits"
    HISTORY_SHORTENED = "HistoryShortened"
    HELD_BY_GROUP = "HeldByGroup"
    ADMISSION_CLOSED = "AdmissionClosed"
    TRIMMED_UNSETTLED = "TrimmedUnsettled"
    LAG_EXACT = "LagExact"
    LAG_ESTIMATED = "LagEstimated"
    LAG_UNKNOWN = "LagUnknown"
    SUSPENDED = "Suspended"
    NOT_SCALED = "NotScaled"
    SCALED_UP = "ScaledUp"
    SCALED_DOWN = "ScaledDown"
    SCALE_HELD = "ScaleHeld"
    AUTOSCALED = "Autoscaled"
    AUTOSCALER_FAILING = "AutoscalerFailing"
    PROGRESSING = "Progressing"
    NO_PROGRESS = "NoProgress"
    CRASH_LOOP = "CrashLoop"
    DEAD_LETTERS = "DeadLetters"
    NO_DEAD_LETTERS = "NoDeadLetters"


class ReasonDoc(NamedTuple):
    """What a reason means, and what to do about it."""

    meaning: str
    action: str


_NOTHING = "Nothing."

REASONS: Mapping[ConditionReason, ReasonDoc] = MappingProxyType(
    {
        ConditionReason.READY: ReasonDoc("The resource is in effect.", _NOTHING),
        ConditionReason.RECONCILING: ReasonDoc(
            "The latest change is being applied.", "Wait; if it lasts, read the other conditions."
        ),
        ConditionReason.PAUSED: ReasonDoc(
            "The annotation `agentstream.dev/paused` keeps everything as it is.",
            "Remove the annotation when the operator may go on.",
        ),
        ConditionReason.OBSERVE_ONLY: ReasonDoc(
            "`managementPolicy: ObserveOnly`: the operator reports and changes nothing.",
            "Set `Managed` to let it act.",
        ),
        ConditionReason.REACHABLE: ReasonDoc("The server answers.", _NOTHING),
        ConditionReason.BACKEND_UNAVAILABLE: ReasonDoc(
            "The server does not answer, or refuses the operator.",
            "Check the server, the network policy and the operator's credentials; it retries by itself.",
        ),
        ConditionReason.SERVER_RESTARTED: ReasonDoc(
            "The server restarted or failed over; everything on it is being checked.",
            "Nothing; a `DataLost` event follows if something was missing.",
        ),
        ConditionReason.EVICTION_POLICY_WRONG: ReasonDoc(
            "The server may evict keys when its memory is full, streams included.",
            "Set `maxmemory-policy noeviction` on the server.",
        ),
        ConditionReason.IN_SYNC: ReasonDoc("The server holds what is declared.", _NOTHING),
        ConditionReason.DRIFT: ReasonDoc(
            "Something on the server was changed by somebody else; it was, or will be, put right.",
            "Find out who changes it; change the resource instead.",
        ),
        ConditionReason.NO_CONFLICT: ReasonDoc("Nobody else claims the same.", _NOTHING),
        ConditionReason.WRONG_TYPE: ReasonDoc(
            "The key exists and is not a stream; it stays untouched.",
            "Choose another `spec.key`, or remove the key if nobody needs it.",
        ),
        ConditionReason.KEY_CLAIMED: ReasonDoc(
            "An older AgentStream has the same key.", "Delete one of the two; the message names the other."
        ),
        ConditionReason.GROUP_CLAIMED: ReasonDoc(
            "An older ConsumerGroup has the same group of the same stream.",
            "Delete one of the two; the message names the other.",
        ),
        ConditionReason.KEY_NOT_ALLOWED: ReasonDoc(
            "`spec.key` lies outside the namespace's own keys.",
            "Leave `key` out, or have the operator's allow-list extended.",
        ),
        ConditionReason.CHILD_NOT_OURS: ReasonDoc(
            "An object with the name of a child exists and belongs to somebody else.",
            "Rename or delete that object; the message names it.",
        ),
        ConditionReason.TEMPLATE_REFUSED: ReasonDoc(
            "The API server refuses the Deployment or Secret that this resource needs.",
            "Read the message: it names the field, quota or policy; change `template` or that.",
        ),
        ConditionReason.DEPLOYMENT_MISSING: ReasonDoc(
            "There is no Deployment of the name that `deploymentRef` says.",
            "Create it, or correct the name; the group itself is in effect.",
        ),
        ConditionReason.DEPLOYMENT_CLAIMED: ReasonDoc(
            "An older ConsumerGroup scales the same Deployment.",
            "Let one group scale it; the message names the other.",
        ),
        ConditionReason.STREAM_MISSING: ReasonDoc(
            "There is no usable AgentStream of that name in the namespace.",
            "Create it, or read its conditions; the group waits.",
        ),
        ConditionReason.STREAM_CREATED: ReasonDoc("The stream was created.", _NOTHING),
        ConditionReason.STREAM_ADOPTED: ReasonDoc(
            "A stream with this key existed and is managed from now on; its messages stay.", _NOTHING
        ),
        ConditionReason.STREAM_RECREATED: ReasonDoc(
            "The stream had vanished and was created again, empty.",
            "Find out what removed it; see `DataLost`.",
        ),
        ConditionReason.STREAM_DELETED: ReasonDoc(
            "The stream and everything that belonged to it were deleted.", _NOTHING
        ),
        ConditionReason.GROUP_CREATED: ReasonDoc("The group was created.", _NOTHING),
        ConditionReason.GROUP_RESTORED: ReasonDoc(
            "The group had vanished and was created again at its last checkpoint.",
            "Expect a few messages twice; find out what removed it.",
        ),
        ConditionReason.GROUP_DELETED: ReasonDoc("The group and its retries were deleted.", _NOTHING),
        ConditionReason.DATA_LOST: ReasonDoc(
            "The server lost messages or groups that it had.",
            "Check the server's persistence and replication; send again what matters.",
        ),
        ConditionReason.RETAINED: ReasonDoc(
            "The resource was deleted; its data stays on the server.",
            "Create it again to resume, or delete the data by hand.",
        ),
        ConditionReason.RETAINED_NOT_EMPTY: ReasonDoc(
            "The data stays because something in it is unsettled.",
            "Settle or replay what is left, then delete the data by hand.",
        ),
        ConditionReason.CREDENTIALS_APPLIED: ReasonDoc("Users, rules and Secrets are in place.", _NOTHING),
        ConditionReason.CREDENTIALS_RESTORED: ReasonDoc(
            "A user had vanished or had other rules; it was put right.",
            "Use an ACL file on the server if it forgets users when it restarts.",
        ),
        ConditionReason.CREDENTIALS_FAILED: ReasonDoc(
            "A user or Secret could not be written, or its rules do not do what they should.",
            "Read the message; check the operator's own rights.",
        ),
        ConditionReason.CONTRACT_INVALID: ReasonDoc(
            "A contract is no JSON Schema (draft 2020-12) of at most 32 KiB; those before it stay in force.",
            "Read the message, and correct `spec.contracts`.",
        ),
        ConditionReason.SIGNING_KEY_MADE: ReasonDoc(
            "`signing.rotation` was raised: there is a new key, and the one before stays valid.",
            "Nothing; the one before goes with the next rotation.",
        ),
        ConditionReason.SIGNING_KEYS_LOST: ReasonDoc(
            "The Secret with the stream's keys was gone, and others were made.",
            "Look at what became a dead letter as `UnknownKey`: it was signed before.",
        ),
        ConditionReason.WITHIN_LIMITS: ReasonDoc("Messages are kept as long as declared.", _NOTHING),
        ConditionReason.HISTORY_SHORTENED: ReasonDoc(
            "Settled messages younger than `minAge` went because the stream reached its limit.",
            "Raise `maxLength` or `maxBytes`, lower `minAge`, or send less.",
        ),
        ConditionReason.HELD_BY_GROUP: ReasonDoc(
            "Messages older than `minAge` stay because a group has not settled them.",
            "Look after the group that the message names, or delete it.",
        ),
        ConditionReason.ADMISSION_CLOSED: ReasonDoc(
            "The stream is full, and adding is refused.",
            "Let consumers catch up: add replicas, repair them, or raise the limit.",
        ),
        ConditionReason.TRIMMED_UNSETTLED: ReasonDoc(
            "`onFull: TrimOldest` removed messages that a group had not settled.",
            "Let consumers catch up, or choose another `onFull`.",
        ),
        ConditionReason.LAG_EXACT: ReasonDoc("The number of waiting messages is exact.", _NOTHING),
        ConditionReason.LAG_ESTIMATED: ReasonDoc(
            "The server cannot tell how many messages wait; the number is an upper bound.",
            "Nothing; it becomes exact once the group has caught up.",
        ),
        ConditionReason.LAG_UNKNOWN: ReasonDoc(
            "It is not known how many messages wait; the number of pods stays as it is.",
            "Check that the server answers and that the group exists.",
        ),
        ConditionReason.SUSPENDED: ReasonDoc(
            "`suspend: true`: no consumers run, and messages wait.", "Set `suspend: false` to go on."
        ),
        ConditionReason.NOT_SCALED: ReasonDoc(
            "There is no template: the agent runs elsewhere, and others decide how many there are.", _NOTHING
        ),
        ConditionReason.SCALED_UP: ReasonDoc("Pods were added for the backlog.", _NOTHING),
        ConditionReason.SCALED_DOWN: ReasonDoc("Pods were removed that were no longer needed.", _NOTHING),
        ConditionReason.SCALE_HELD: ReasonDoc(
            "The number of pods is what is wanted, or is held until more is known.", _NOTHING
        ),
        ConditionReason.AUTOSCALED: ReasonDoc(
            "The group's HorizontalPodAutoscaler decides the number of pods (`mode: HPA`).", _NOTHING
        ),
        ConditionReason.AUTOSCALER_FAILING: ReasonDoc(
            "The group's HorizontalPodAutoscaler cannot do its work; the number of pods stays as it is.",
            "Read the message. Is the chart's `metricsServer` enabled? `mode: Direct` needs neither.",
        ),
        ConditionReason.PROGRESSING: ReasonDoc("Messages are being settled, or none wait.", _NOTHING),
        ConditionReason.NO_PROGRESS: ReasonDoc(
            "Messages wait, and none has been settled for a while.",
            "Read the consumers' logs; look at pending messages with `agentstream lag`.",
        ),
        ConditionReason.CRASH_LOOP: ReasonDoc(
            "The consumers' containers keep exiting, or cannot be started.",
            "Read the message and their logs; a message that kills them becomes a dead letter in the end.",
        ),
        ConditionReason.DEAD_LETTERS: ReasonDoc(
            "Messages were given up and are kept as dead letters.",
            "Read why in their fields, repair the cause, then `agentstream replay` them.",
        ),
        ConditionReason.NO_DEAD_LETTERS: ReasonDoc("No message has been given up.", _NOTHING),
    }
)
