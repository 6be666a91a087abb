{{/*
Alerts about messages, from the series of single streams and groups. The label `namespace` of these is the resource's, and
counters begin at zero with each operator: sums over the operators' pods go on where one takes over from another.
*/}}

{{/* What a group lost, without what its stream was told to trim: (dict "of" MATCHERS "window" TIME). */}}
{{- define "agentstream.lostIn" -}}
(increase(agentstream_group_lost_total{ {{- .of -}} }[{{ .window }}]) unless on (namespace, stream) agentstream_stream_info{ {{- .of -}} ,on_full="TrimOldest"})
{{- end -}}

{{/* The share of messages that were not delivered: (dict "of" MATCHERS "window" TIME). */}}
{{- define "agentstream.undeliveredIn" -}}
sum by (namespace, stream, group) (increase(agentstream_group_settled_total{ {{- .of -}} ,outcome="dead"}[{{ .window }}]) or {{ include "agentstream.lostIn" . }})
/ sum by (namespace, stream, group) (increase(agentstream_group_settled_total{ {{- .of -}} ,outcome=~"acked|dead"}[{{ .window }}]) or {{ include "agentstream.lostIn" . }})
{{- end -}}

{{/* The share of messages that took too long: (dict "of" MATCHERS "window" TIME "seconds" BUCKET). */}}
{{- define "agentstream.slowIn" -}}
1 - sum by (namespace, stream, group) (increase(agentstream_group_latency_seconds_bucket{ {{- .of -}} ,le="{{ .seconds }}"}[{{ .window }}]))
/ sum by (namespace, stream, group) (increase(agentstream_group_latency_seconds_count{ {{- .of -}} }[{{ .window }}]))
{{- end -}}

{{- define "agentstream.messageAlerts" -}}
{{- $job := printf "%s-metrics" (include "agentstream.fullname" .) -}}
{{- $settings := .Values.metrics.prometheusRule -}}
{{- $of := coalesce $settings.resourceSelector $settings.selector (printf "job=%q" $job) -}}
{{- $group := "{{ $labels.namespace }}/{{ $labels.group }}" -}}
{{- $stream := "{{ $labels.namespace }}/{{ $labels.stream }}" -}}
- alert: AgentStreamMessagesLost
  expr: >-
    max by (namespace, group) (label_replace(agentstream_condition{ {{- $of -}} ,kind="ConsumerGroup",type="MessagesLost",status="True"}, "group", "$1", "name", "(.+)")) > 0
    or sum by (namespace, group) ({{ include "agentstream.lostIn" (dict "of" $of "window" "15m") }}) > 0
  labels:
    severity: critical
  annotations:
    summary: Messages were lost.
    description: >-
      Messages of the group {{ $group }} that it had not settled are gone: another client took them, or the server lost them.
- alert: AgentStreamDeadLettersGrowing
  expr: sum by (namespace, stream, group) (increase(agentstream_group_settled_total{ {{- $of -}} ,outcome="dead"}[15m])) > {{ $settings.deadLetters }}
  labels:
    severity: warning
  annotations:
    summary: Messages become dead letters.
    description: >-
      The group {{ $group }} gave up on {{ "{{ $value | printf \"%.0f\" }}" }} messages in 15 minutes. They are kept as dead letters.
- alert: AgentStreamBacklogOld
  expr: >-
    max by (namespace, stream, group) (agentstream_group_oldest_waiting_seconds{ {{- $of -}} })
    > on (namespace, stream, group) (max by (namespace, stream, group) (agentstream_group_target_age_seconds{ {{- $of -}} })
    or max by (namespace, stream, group) (agentstream_group_oldest_waiting_seconds{ {{- $of -}} }) * 0 + {{ $settings.backlogOldSeconds }})
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: Messages wait for long.
    description: >-
      A message has waited {{ "{{ $value | humanizeDuration }}" }} for a consumer of the group {{ $group }}.
- alert: AgentStreamGroupNotConsuming
  # consumers that crash run for some seconds between two crashes
  expr: max by (namespace, group, reason) (label_replace(max_over_time(agentstream_condition{ {{- $of -}} ,kind="ConsumerGroup",type="Consuming",status="False",reason!="Suspended"}[90s]), "group", "$1", "name", "(.+)")) > 0
  for: 2m
  labels:
    severity: critical
  annotations:
    summary: A group handles nothing, although messages wait.
    description: >-
      Messages wait for the group {{ $group }}, and nothing of them is being done ({{ "{{ $labels.reason }}" }}).
- alert: AgentStreamAdmissionClosed
  # a full stream opens for a moment whenever a message is settled
  expr: max by (namespace, stream) (avg_over_time(agentstream_stream_admission_open{ {{- $of -}} }[5m])) < 0.5
  for: 3m
  labels:
    severity: critical
  annotations:
    summary: A stream is full.
    description: >-
      The stream {{ $stream }} has refused new messages most of the last 5 minutes: its groups have to catch up first.
- alert: AgentStreamHistoryShortened
  expr: max by (namespace, stream) (agentstream_stream_history_shortened{ {{- $of -}} }) == 1
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: A stream keeps its history for a shorter time than it should.
    description: >-
      The stream {{ $stream }} reached its limit: settled messages younger than minAge are trimmed, and cannot be replayed.
- alert: AgentStreamAtMaxReplicas
  expr: >-
    max by (namespace, stream, group) (agentstream_group_desired_replicas{ {{- $of -}} })
    >= on (namespace, stream, group) max by (namespace, stream, group) (agentstream_group_max_replicas{ {{- $of -}} })
    and on (namespace, stream, group) max by (namespace, stream, group) (agentstream_group_undelivered{ {{- $of -}} }) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: A group needs more consumers than it may have.
    description: >-
      The group {{ $group }} has had {{ "{{ $value }}" }} consumers, which is its maxReplicas, for 15 minutes, and messages wait.
{{- range $burn, $rate := dict "fast" (dict "times" "14.4" "long" "1h" "short" "5m" "severity" "critical") "slow" (dict "times" "6" "long" "6h" "short" "30m" "severity" "warning") }}
- alert: AgentStreamDeliveryObjective
  expr: >-
    {{ include "agentstream.undeliveredIn" (dict "of" $of "window" $rate.long) | nindent 4 | trim }}
    > {{ $rate.times }} * (1 - {{ $settings.delivery.objective }})
    and {{ include "agentstream.undeliveredIn" (dict "of" $of "window" $rate.short) | nindent 4 | trim }}
    > {{ $rate.times }} * (1 - {{ $settings.delivery.objective }})
    and sum by (namespace, stream, group) (increase(agentstream_group_settled_total{ {{- $of -}} ,outcome="dead"}[{{ $rate.long }}]) or {{ include "agentstream.lostIn" (dict "of" $of "window" $rate.long) }}) >= {{ $settings.delivery.minimum }}
  labels:
    severity: {{ $rate.severity }}
    burn: {{ $burn }}
  annotations:
    summary: More messages fail than the objective allows.
    description: >-
      {{ "{{ $value | humanizePercentage }}" }} of the messages of the group {{ $group }} became dead letters or were lost within {{ $rate.long }}:
      at this rate, what the objective allows in a month is used up in {{ ternary "two days" "five days" (eq $burn "fast") }}.
- alert: AgentStreamLatencyObjective
  expr: >-
    {{ include "agentstream.slowIn" (dict "of" (printf "%s,group=~%q" $of $settings.latency.groups) "window" $rate.long "seconds" $settings.latency.seconds) | nindent 4 | trim }}
    > {{ $rate.times }} * (1 - {{ $settings.latency.objective }})
    and {{ include "agentstream.slowIn" (dict "of" (printf "%s,group=~%q" $of $settings.latency.groups) "window" $rate.short "seconds" $settings.latency.seconds) | nindent 4 | trim }}
    > {{ $rate.times }} * (1 - {{ $settings.latency.objective }})
    and sum by (namespace, stream, group) (increase(agentstream_group_latency_seconds_count{ {{- $of -}} }[{{ $rate.long }}])) >= {{ $settings.latency.minimum }}
  labels:
    severity: warning
    burn: {{ $burn }}
  annotations:
    summary: Messages take longer than the objective allows.
    description: >-
      {{ "{{ $value | humanizePercentage }}" }} of the messages of the group {{ $group }} were acknowledged later than {{ $settings.latency.seconds }} s after
      they were added, within {{ $rate.long }}.
{{- end }}
{{- end -}}
