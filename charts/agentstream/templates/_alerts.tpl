{{/*
The alerts; docs/operations/runbook.md has a section for each. Of several replicas only the one that leads says
something about the server.
*/}}
{{- define "agentstream.alerts" -}}
{{- $job := printf "%s-metrics" (include "agentstream.fullname" .) -}}
{{- $of := default (printf "namespace=%q,job=%q" .Release.Namespace $job) .Values.metrics.prometheusRule.selector -}}
- alert: AgentStreamOperatorDown
  expr: absent(agentstream_leader{ {{- $of -}} } == 1)
  for: 2m
  labels:
    severity: critical
  annotations:
    summary: No AgentStream operator reconciles.
    description: >-
      No operator of {{ .Release.Namespace }}/{{ include "agentstream.fullname" . }} has held the Lease for 2 minutes.
      Agents send and consume as before; streams are not trimmed or repaired, groups not scaled, and changes of
      resources not applied.
- alert: AgentStreamRedisDown
  expr: agentstream_leader{ {{- $of -}} } == 1 unless on (namespace, pod) agentstream_redis_up{ {{- $of -}} } == 1
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: The AgentStream operator cannot reach Redis.
    description: >-
      Redis has not answered the operator {{`{{ $labels.namespace }}/{{ $labels.pod }}`}} for a minute. If agents cannot
      reach it either, no messages are sent or consumed.
- alert: AgentStreamQueueStuck
  expr: max(agentstream_queue_oldest_seconds{ {{- $of -}} }) > {{ .Values.metrics.prometheusRule.queueOldestSeconds }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The queue of the AgentStream operator is stuck.
    description: >-
      The oldest key in the queue has waited {{`{{ $value | humanizeDuration }}`}}. Changes of resources are applied with
      this delay.
- alert: AgentStreamResourcesNotReady
  expr: sum by (kind) (max by (kind, status) (agentstream_resources{ {{- $of -}} ,condition="Ready",status!="True",kind!="StreamReplay"})) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Some AgentStream resources are not ready.
    description: >-
      {{`{{ $value }} of kind {{ $labels.kind }}`}} have not been Ready for 15 minutes. Their conditions name the cause.
- alert: AgentStreamReconcileErrors
  expr: >-
    sum by (kind) (rate(agentstream_reconcile_duration_seconds_count{ {{- $of -}} ,outcome="error"}[10m]))
    / sum by (kind) (rate(agentstream_reconcile_duration_seconds_count{ {{- $of -}} }[10m])) > 0.05
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Reconciliations of the AgentStream operator fail.
    description: >-
      {{`{{ $value | humanizePercentage }} of the reconciliations of {{ $labels.kind }}`}} have failed for 15 minutes. The
      operator's log names the cause.
{{- if not .Values.metrics.perResource }}
- alert: AgentStreamMessagesLost
  expr: max(agentstream_resources{ {{- $of -}} ,kind="ConsumerGroup",condition="MessagesLost",status="True"}) > 0
  labels:
    severity: critical
  annotations:
    summary: Clients took messages from groups of others.
    description: >-
      {{`{{ $value }}`}} ConsumerGroups lost messages that they had not settled, or were moved past the end of their stream.
      Their conditions MessagesLost say how many, and who could have done it.
{{- end }}
- alert: AgentStreamIdsInTheFuture
  expr: max(agentstream_resources{ {{- $of -}} ,kind="AgentStream",condition="IdsInTheFuture",status="True"}) > 0
  labels:
    severity: warning
  annotations:
    summary: A client added an entry with an id of the future to a stream.
    description: >-
      {{`{{ $value }}`}} AgentStreams have ids that are later than the server's clock: minAge trims nothing, signed messages
      are refused as replayed and, after the highest id, the stream takes no more entries.
{{- if .Values.metrics.perResource }}
{{ include "agentstream.messageAlerts" . }}
{{- end }}
{{- if .Values.metricsServer.enabled }}
{{- $job = printf "%s-metrics-server" (include "agentstream.fullname" .) }}
{{- $of = default (printf "namespace=%q,job=%q" .Release.Namespace $job) .Values.metrics.prometheusRule.selector }}
- alert: AgentStreamMetricsServerDown
  expr: absent(agentstream_external_groups{ {{- $of -}} })
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: No AgentStream metrics server is running.
    description: >-
      No metrics server of {{ .Release.Namespace }}/{{ include "agentstream.fullname" . }} has been scraped for 5 minutes.
      If autoscalers cannot reach one either, groups with mode HPA keep their number of pods.
- alert: AgentStreamExternalMetricsFailing
  expr: >-
    sum(rate(agentstream_external_answers_total{ {{- $of -}} ,code=~"5.."}[10m]))
    / sum(rate(agentstream_external_answers_total{ {{- $of -}} }[10m])) > 0.1
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: The AgentStream metrics server cannot read the backlog of some groups.
    description: >-
      {{`{{ $value | humanizePercentage }} of the requests for external metrics`}} have failed for 15 minutes. Groups with
      mode HPA whose backlog is unknown keep their number of pods.
{{- end }}
{{- end -}}
