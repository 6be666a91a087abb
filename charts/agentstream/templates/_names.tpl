{{/* The chart's name. */}}
{{- define "agentstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 46 | trimSuffix "-" -}}
{{- end -}}

{{/*
What names of objects begin with. 46 characters: a StatefulSet's name may have 52, since a label of its pods adds a
hash to it, and the longest suffix here is as long as that of a Job's pod.
*/}}
{{- define "agentstream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains (include "agentstream.name" .) .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "agentstream.name" .) | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Selector labels of this release; immutable. */}}
{{- define "agentstream.selectorLabels" -}}
app.kubernetes.io/name: {{ include "agentstream.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of all objects, without the component. */}}
{{- define "agentstream.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "agentstream.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: agentstream
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The operator's ServiceAccount. */}}
{{- define "agentstream.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "agentstream.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The metrics server's ServiceAccount; the operator's if none is created. */}}
{{- define "agentstream.metricsAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- printf "%s-metrics-server" (include "agentstream.fullname" .) -}}
{{- else -}}
{{- include "agentstream.serviceAccountName" . -}}
{{- end -}}
{{- end -}}

{{/* The ServiceAccount of the hook; the operator's if no roles are created. */}}
{{- define "agentstream.hookServiceAccountName" -}}
{{- if .Values.rbac.create -}}
{{- printf "%s-pre-delete" (include "agentstream.fullname" .) -}}
{{- else -}}
{{- include "agentstream.serviceAccountName" . -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the URL of Redis or Valkey. */}}
{{- define "agentstream.redisSecretName" -}}
{{- if .Values.redis.embedded -}}
{{- printf "%s-redis" (include "agentstream.fullname" .) -}}
{{- else -}}
{{- .Values.redis.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the URL for the metrics server. */}}
{{- define "agentstream.metricsRedisSecretName" -}}
{{- default (include "agentstream.redisSecretName" .) .Values.metricsServer.redis.existingSecret -}}
{{- end -}}

{{/* An image reference: (dict "image" VALUES "tag" DEFAULT). */}}
{{- define "agentstream.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .tag .image.tag) -}}
{{- end -}}
{{- end -}}
