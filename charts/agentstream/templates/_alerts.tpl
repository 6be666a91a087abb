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
    summary: No AgentStream operator is at work.
    description: >-
      No operator of {{ .Release.Namespace }}/{{ include "agentstream.fullname" . }} has led for 2 minutes. Agents send
      and consume as before; nothing is scaled, trimmed or repaired, and changes to resources wait.
- alert: AgentStreamRedisDown
  expr: agentstream_leader{ {{- $of -}} } == 1 unless on (namespace, pod) agentstream_redis_up{ {{- $of -}} } == 1
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: The AgentStream operator does not reach its Redis.
    description: >-
      The server has not answered the operator {{`{{ $labels.namespace }}/{{ $labels.pod }}`}} for a minute. If agents do
      not reach it either, no message is sent or consumed.
- alert: AgentStreamQueueStuck
  expr: max(agentstream_queue_oldest_seconds{ {{- $of -}} }) > {{ .Values.metrics.prometheusRule.queueOldestSeconds }}
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: The AgentStream operator does not keep up with its work.
    description: >-
      The oldest waiting piece of work is {{`{{ $value | humanizeDuration }}`}} old. Changes to resources take as long
      to have an effect.
- alert: AgentStreamResourcesNotReady
  expr: sum by (kind) (max by (kind, status) (agentstream_resources{ {{- $of -}} ,condition="Ready",status!="True"})) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: Some AgentStream resources are not ready.
    description: >-
      {{`{{ $value }} of kind {{ $labels.kind }}`}} have not been Ready for 15 minutes. Their conditions say why.
- alert: AgentStreamReconcileErrors
  expr: >-
    sum by (kind) (rate(agentstream_reconcile_duration_seconds_count{ {{- $of -}} ,outcome="error"}[10m]))
    / sum by (kind) (rate(agentstream_reconcile_duration_seconds_count{ {{- $of -}} }[10m])) > 0.05
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: The AgentStream operator fails at reconciling.
    description: >-
      {{`{{ $value | humanizePercentage }} of the passes over {{ $labels.kind }}`}} have ended in an error for 15
      minutes. The operator's log has the reason.
{{- if .Values.metricsServer.enabled }}
{{- $job = printf "%s-metrics-server" (include "agentstream.fullname" .) }}
{{- $of = default (printf "namespace=%q,job=%q" .Release.Namespace $job) .Values.metrics.prometheusRule.selector }}
- alert: AgentStreamMetricsServerDown
  expr: absent(agentstream_external_groups{ {{- $of -}} })
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: No AgentStream metrics server answers.
    description: >-
      No metrics server of {{ .Release.Namespace }}/{{ include "agentstream.fullname" . }} has been scraped for 5 minutes.
      If autoscalers do not reach one either, groups with mode HPA keep the number of pods that they have.
- alert: AgentStreamExternalMetricsFailing
  expr: >-
    sum(rate(agentstream_external_answers_total{ {{- $of -}} ,code=~"5.."}[10m]))
    / sum(rate(agentstream_external_answers_total{ {{- $of -}} }[10m])) > 0.1
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: The AgentStream metrics server does not know the backlog of some groups.
    description: >-
      {{`{{ $value | humanizePercentage }} of the answers to autoscalers`}} have been errors for 15 minutes. Groups with
      mode HPA whose backlog is not known keep the number of pods that they have.
{{- end }}
{{- end -}}
