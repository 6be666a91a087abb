"""The condition types and reasons, for conditions, events, metrics labels and the docs.

`docs/reference/conditions.md` is generated from this module.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class ConditionType(StrEnum):
    """The condition types, in the order in which a status lists them."""

    meaning: str  # of the status True
    healthy: str  # the status without a problem

    def __new__(cls, value: str, meaning: str, healthy: str = "True") -> Self:
        """Creates a type from its name, its meaning and its healthy status."""
        member = str.__new__(cls, value)
        member._value_, member.meaning, member.healthy = value, meaning, healthy
        return member

    READY = "Ready", "The resource is in effect for its latest generation; summarizes the other conditions."
    STALLED = (
        "Stalled",
        "Only a change of the resource can make it ready: Helm and Flux stop waiting. Absent otherwise.",
        "False",
    )
    BACKEND_REACHABLE = "BackendReachable", "The Redis or Valkey server answers."
    SYNCED = "Synced", "The server matches the resource."
    CREDENTIALS_SYNCED = "CredentialsSynced", "The agents' ACL users, routes and Secrets are written."
    RETENTION_HEALTHY = (
        "RetentionHealthy",
        "Messages are kept as long as declared, and new ones are accepted.",
    )
    STREAM_READY = "StreamReady", "The group's stream exists on the server."
    LAG_KNOWN = "LagKnown", "The group's lag is known."
    SCALING_ACTIVE = "ScalingActive", "The number of consumers follows the backlog."
    CONFLICT = "Conflict", "An older resource or another installation already uses the key or group.", "False"
    IDS_IN_THE_FUTURE = (
        "IdsInTheFuture",
        "The stream's last id is of the future: a client added an entry with an id of its own.",
        "False",
    )
    MESSAGES_LOST = (
        "MessagesLost",
        "Other clients took messages from the group that it had not settled.",
        "False",
    )
    CONSUMING = "Consuming", "The group's messages are being handled, or none are waiting."
    DEAD_LETTERING = "DeadLettering", "The group has dead letters.", "False"
    SUSPENDED = "Suspended", "The replay is held by `suspend: true`.", "False"
    COMPLETE = "Complete", "The replay has ended well; absent before."
    FAILED = "Failed", "The replay has ended before its end; absent otherwise.", "False"


_READ = "Read the message"


class ConditionReason(StrEnum):
    """The reasons of conditions and events, with the action to take."""

    meaning: str
    action: str

    def __new__(cls, value: str, meaning: str, action: str = "Nothing.") -> Self:
        """Creates a reason from its name, its meaning and the action to take."""
        member = str.__new__(cls, value)
        member._value_, member.meaning, member.action = value, meaning, action
        return member

    READY = "Ready", "The resource is in effect."
    RECONCILING = (
        "Reconciling",
        "The latest change is being applied.",
        "Wait; if it lasts, read the message and the other conditions.",
    )
    PAUSED = (
        "Paused",
        "The annotation `agentstream.dev/paused` is set: the operator changes nothing for the resource.",
        "Remove the annotation to resume.",
    )
    OBSERVE_ONLY = (
        "ObserveOnly",
        "`managementPolicy: ObserveOnly`: the operator reports and changes nothing.",
        "Set `Managed` to let the operator change the server.",
    )
    REACHABLE = "Reachable", "The server answers."
    BACKEND_UNAVAILABLE = (
        "BackendUnavailable",
        "The server does not answer, or refuses the operator.",
        "Check the server, the network policy and the operator's credentials; the operator retries.",
    )
    EVICTION_POLICY_WRONG = (
        "EvictionPolicyWrong",
        "The server may evict keys, streams included, when its memory is full.",
        "Set `maxmemory-policy noeviction` on the server.",
    )
    IN_SYNC = "InSync", "The server matches the resource."
    DRIFT = (
        "Drift",
        "The server differs from the resource, and `managementPolicy: ObserveOnly` leaves it so.",
        "Read the message: it says what the operator would do. Set `Managed` to let it.",
    )
    NO_CONFLICT = "NoConflict", "No other resource uses the same key or group."
    WRONG_TYPE = (
        "WrongType",
        "The key exists and is not a stream; the operator leaves it unchanged.",
        "Choose another `spec.key`, or delete the key if it is not needed.",
    )
    KEY_CLAIMED = (
        "KeyClaimed",
        "An older AgentStream or another installation uses the same key.",
        "Delete one of the two AgentStreams, or change `spec.key`; the message names the other one.",
    )
    KEY_OF_FORMER_NAMESPACE = (
        "KeyOfFormerNamespace",
        "A namespace that is gone has left messages under the key; no agent gets access to them.",
        "If they are this namespace's, annotate it with `agentstream.dev/adopt=true`; or choose another key.",
    )
    GROUP_CLAIMED = (
        "GroupClaimed",
        "An older ConsumerGroup uses the same group of the same stream.",
        "Delete one of the two; the message names the other one.",
    )
    KEY_NOT_ALLOWED = (
        "KeyNotAllowed",
        "`spec.key` does not begin with the prefix of the namespace.",
        "Remove `spec.key`, or add the key to the operator's allowed keys.",
    )
    CHILD_NOT_OURS = (
        "ChildNotOurs",
        "An object that the operator has to create exists already and was not created by it.",
        "Rename or delete that object; the message names it.",
    )
    TEMPLATE_REFUSED = (
        "TemplateRefused",
        "The API server refuses the Deployment, autoscaler or Secret of this resource.",
        f"{_READ}: it names the field, quota or policy; correct `template`, or change the quota or policy.",
    )
    DEPLOYMENT_MISSING = (
        "DeploymentMissing",
        "The Deployment that `deploymentRef` names does not exist.",
        "Create it, or correct the name. The group itself is in effect.",
    )
    DEPLOYMENT_CLAIMED = (
        "DeploymentClaimed",
        "An older ConsumerGroup scales the same Deployment.",
        "Remove `deploymentRef` from one of the two; the message names the other one.",
    )
    STREAM_MISSING = (
        "StreamMissing",
        "The AgentStream does not exist in the namespace, or is not in effect.",
        "Create it, or read its conditions; the group starts by itself afterwards.",
    )
    STREAM_CREATED = "StreamCreated", "The stream was created."
    STREAM_ADOPTED = "StreamAdopted", "The stream existed and is managed from now on; its messages are kept."
    STREAM_RECREATED = (
        "StreamRecreated",
        "The stream was missing on the server and was created again, empty.",
        "Find out which client removed it; see `DataLost`.",
    )
    STREAM_DELETED = (
        "StreamDeleted",
        "The stream and all keys derived from it were deleted; a replay of it ends there.",
    )
    GROUP_CREATED = "GroupCreated", "The group was created."
    GROUP_RESTORED = (
        "GroupRestored",
        "The group was missing on the server and was created again at its last checkpoint.",
        "Expect a few duplicates; find out which client removed the group.",
    )
    GROUP_DELETED = "GroupDeleted", "The group and its retries were deleted; a replay of it ends there."
    DATA_LOST = (
        "DataLost",
        "The server lost messages or groups.",
        "Check the server's persistence and replication; send lost messages again if they matter.",
    )
    RETAINED = (
        "Retained",
        "The resource was deleted; its data stays on the server.",
        "Create the resource again to resume, or delete the data by hand.",
    )
    RETAINED_NOT_EMPTY = (
        "RetainedNotEmpty",
        "The resource was deleted; its stream stays because a group has unsettled messages or dead letters.",
        "Settle or remove what is left, then delete the stream by hand.",
    )
    CREDENTIALS_APPLIED = "CredentialsApplied", "ACL users, routes and Secrets are written."
    CREDENTIALS_RESTORED = (
        "CredentialsRestored",
        "An ACL user was missing or had other rules, and was written again.",
        "Configure an ACL file if the server loses users at a restart.",
    )
    ROUTE_RESTORED = (
        "RouteRestored",
        "Somebody changed an agent's route on the server, and it was written again.",
        "Find out who can write to the server; what Secrets say of signatures held all the time.",
    )
    CREDENTIALS_ROTATED = (
        "CredentialsRotated",
        "An agent has a new password; the former one ends, and with it the agent's connections.",
        "Nothing: agents read their Secret anew whenever they connect.",
    )
    CREDENTIALS_FAILED = (
        "CredentialsFailed",
        "An ACL user could not be written, or its rules are not enforced as expected.",
        f"{_READ}; check the operator's own rights on the server.",
    )
    INVALID = (
        "Invalid",
        "The resource has fields that this version of the operator does not take; it is not in effect.",
        f"{_READ} and correct the fields that it names.",
    )
    CONTRACT_INVALID = (
        "ContractInvalid",
        "A contract is not a JSON Schema (draft 2020-12) of at most 32 KiB; the previous ones stay in force.",
        f"{_READ} and correct `spec.contracts`.",
    )
    SIGNING_KEY_MADE = (
        "SigningKeyMade",
        "`signing.rotation` was raised: a new key was created, and the previous one stays valid.",
        "Nothing; the next rotation removes the previous key.",
    )
    SIGNING_KEYS_LOST = (
        "SigningKeysLost",
        "The Secret with the stream's keys was missing, and new keys were created.",
        "Check the dead letters with reason `UnknownKey`: they were signed with the lost keys.",
    )
    WITHIN_LIMITS = "WithinLimits", "Messages are kept as long as declared."
    HISTORY_SHORTENED = (
        "HistoryShortened",
        "Settled messages younger than `minAge` were trimmed because the stream reached its limit.",
        "Raise `maxLength` or `maxBytes`, lower `minAge`, or send less.",
    )
    HELD_BY_GROUP = (
        "HeldByGroup",
        "Messages older than `minAge` are kept because a group has not settled them.",
        "Repair the consumers of the group that the message names, or delete the group.",
    )
    ADMISSION_CLOSED = (
        "AdmissionClosed",
        "The stream is full, and new messages are refused.",
        "Let consumers catch up: add replicas, repair them, or raise the limit.",
    )
    TRIMMED_UNSETTLED = (
        "TrimmedUnsettled",
        "Messages that a group had not settled were removed, by `onFull: TrimOldest` or as too large.",
        "Let consumers catch up, or choose another `onFull`.",
    )
    JANITOR_FAILED = (
        "JanitorFailed",
        "The stream could not be cleaned up: nothing is trimmed, and delayed retries wait for consumers.",
        f"{_READ}: it has the server's error. The operator tries again every few seconds.",
    )
    TOO_MANY_CONSUMERS = (
        "TooManyConsumers",
        "The group has more than 1,000 consumers: those that are gone are removed once a minute only.",
        "Find out which client makes up names of consumers.",
    )
    IDS_CURRENT = "IdsCurrent", "The ids of the stream are those of the server's clock."
    IDS_IN_THE_FUTURE = (
        "IdsInTheFuture",
        "The last id is later than the server's clock: `minAge` trims nothing; signatures are `Replayed`.",
        "Find the producer that chose an id; annotate the AgentStream with `agentstream.dev/heal: ids`.",
    )
    IDS_EXHAUSTED = (
        "IdsExhausted",
        "A client added an entry with the highest id: the stream takes no more entries.",
        "As for `IdsInTheFuture`.",
    )
    NONE_LOST = "NoneLost", "What the group has read is settled or pending."
    MESSAGES_VANISHED = (
        "MessagesVanished",
        "Messages that the group had not settled were trimmed, deleted, or read or acknowledged in its name.",
        "Find the client; annotate the ConsumerGroup with `agentstream.dev/heal: repeat`, or `write-off`.",
    )
    GROUP_MOVED_AHEAD = (
        "GroupMovedAhead",
        "A client moved the group past the end of its stream: it gets no messages.",
        "Find the client; annotate the ConsumerGroup with `agentstream.dev/heal: repeat`.",
    )
    GROUP_HEALED = "GroupHealed", "The group was healed, as its annotation `agentstream.dev/heal` asked for."
    IDS_HEALED = "IdsHealed", "The stream has ids of the present again, as its annotation asked for."
    LAG_EXACT = "LagExact", "The lag is exact."
    LAG_ESTIMATED = (
        "LagEstimated",
        "The server does not know the lag; the number is an upper bound.",
        "Nothing; it becomes exact once the group has caught up.",
    )
    LAG_UNKNOWN = (
        "LagUnknown",
        "The lag is not known; the number of replicas is left as it is.",
        "Check that the server answers and that the group exists.",
    )
    STATS_UNREADABLE = (
        "StatsUnreadable",
        "A key of the group holds what no client of AgentStream wrote; counters get their last value back.",
        "Find out which consumer of the group writes there. If it lasts, read the message.",
    )
    SUSPENDED = (
        "Suspended",
        "`suspend: true`: the group has no consumers, and messages wait; or a replay is held where it is.",
        "Set `suspend: false` to resume.",
    )
    NOT_SCALED = (
        "NotScaled",
        "`autoscaling` is not set, or the group has no workload (`template` or `deploymentRef`) to scale.",
        "Nothing; set `autoscaling` to scale by the backlog.",
    )
    SCALED_UP = "ScaledUp", "Replicas were added for the backlog."
    SCALED_DOWN = "ScaledDown", "Replicas that were no longer needed were removed."
    SCALE_HELD = "ScaleHeld", "The operator has not changed the number of replicas yet."
    AUTOSCALED = "Autoscaled", "The group's HorizontalPodAutoscaler sets the replicas (`mode: HPA`)."
    AUTOSCALER_FAILING = (
        "AutoscalerFailing",
        "The group's HorizontalPodAutoscaler reports a failure; the number of replicas is left as it is.",
        f"{_READ}. Enable the chart's `metricsServer`, or use `mode: Direct`, which does not need it.",
    )
    PROGRESSING = "Progressing", "Messages are being settled, or none are waiting."
    HANDLERS_RUNNING = (
        "HandlersRunning",
        "Nothing was settled lately, but consumers renew the leases of what they handle: handlers take long.",
        "Nothing. If a handler hangs, delete its pod; `delivery.deadline` ends the next one.",
    )
    NO_CONSUMERS = (
        "NoConsumers",
        "Messages are waiting, and for three leases (at least one minute) no consumer took one.",
        "Start consumers. If there are some, read their logs: they may be unable to log in.",
    )
    NO_PROGRESS = (
        "NoProgress",
        "Consumers hold messages, and for three leases (at least one minute) none was settled or renewed.",
        "Read the consumers' logs; `agentstream show` names who holds a message. Delete a pod that hangs.",
    )
    CRASH_LOOP = (
        "CrashLoop",
        "The consumers' containers exit again and again, or cannot be started.",
        f"{_READ} and the logs. A message that crashes its consumers becomes a dead letter in the end.",
    )
    DEAD_LETTERS = (
        "DeadLetters",
        "Messages exhausted their attempts, or could not be handled, and are kept as dead letters.",
        "See what they died of (`agentstream dlq`), repair it, then `agentstream replay --dead`.",
    )
    NO_DEAD_LETTERS = "NoDeadLetters", "The group has no dead letters."
    GROUP_NOT_FOUND = (
        "GroupNotFound",
        "The ConsumerGroup does not exist in the namespace, or is not in effect.",
        "Create it, or read its conditions; the replay begins by itself. Delete a replay with a wrong name.",
    )
    WAITING_FOR_REPLAY = (
        "WaitingForReplay",
        "Another replay of the group is at work, and a group has one at a time.",
        "Wait; or suspend, or delete, the replay that the message names.",
    )
    OUTSIDE_RETENTION = (
        "OutsideRetention",
        "The range begins before the oldest message that the stream still has, or all of it does.",
        f"{_READ}: it says how far back the stream reaches. What was trimmed cannot be replayed.",
    )
    NOTHING_MATCHED = (
        "NothingMatched",
        "No message of the range matches `select`.",
        "Compare `from` and `select` with the messages or dead letters that there are.",
    )
    WINDOW_FULL = (
        "WindowFull",
        "The replay waits: the group has more than `window` retries.",
        "Nothing; raise `window` or add replicas if it should be faster.",
    )
    REPLAYING = "Replaying", "Messages are being replayed, or dead letters removed."
    REPLAY_STARTED = "ReplayStarted", "The replay began; the message says who asked for it, and why."
    REPLAY_FINISHED = "ReplayFinished", "Everything that the replay selected was moved or removed."
    DRY_RUN_FINISHED = "DryRunFinished", "`dryRun: true`: messages were counted, and nothing was changed."
    REPLAY_FAILED = (
        "ReplayFailed",
        "The replay cannot go on; what was moved stays moved, and is counted in the status.",
        f"{_READ}, remove the cause, and create another replay from `status.cursor` on.",
    )
    REPLAY_CHANGED = (
        "ReplayChanged",
        "Somebody changed the replay over the HTTP API: the message says who, what, and why.",
    )
    REPLAY_DELETED = (
        "ReplayDeleted",
        "Somebody deleted the replay over the HTTP API: the message says who, and why.",
    )
    REPLAY_STOPPED = (
        "ReplayStopped",
        "The replay was deleted before it had ended; what was moved stays moved.",
    )
