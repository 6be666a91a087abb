{{/* What values.schema.json cannot say so that a person understands it. */}}
{{- define "agentstream.checks" -}}
{{- if and .Values.redis.embedded .Values.redis.existingSecret -}}
{{- fail (printf "redis.embedded and redis.existingSecret exclude each other: leave redis.existingSecret (now %q) out to run a Redis for trials, or set redis.embedded=false to use your own server" .Values.redis.existingSecret) -}}
{{- end -}}
{{- if not (or .Values.redis.embedded .Values.redis.existingSecret) -}}
{{- fail "where are messages to be kept? Set redis.embedded=true to run a single Redis for trials, or redis.existingSecret=NAME, a Secret in this namespace whose entry `url` is redis://USER:PASSWORD@HOST:PORT" -}}
{{- end -}}
{{- if and .Values.redis.embedded .Values.redis.caKey -}}
{{- fail "redis.caKey is the entry of redis.existingSecret; the embedded Redis has no TLS" -}}
{{- end -}}
{{- if .Values.metricsServer.enabled -}}
{{- $there := lookup "apiregistration.k8s.io/v1" "APIService" "" "v1beta1.external.metrics.k8s.io" | default dict -}}
{{- $notes := ($there.metadata | default dict).annotations | default dict -}}
{{- $owner := printf "%s/%s" (index $notes "meta.helm.sh/release-namespace" | default "") (index $notes "meta.helm.sh/release-name" | default "") -}}
{{- if and $there (ne $owner (printf "%s/%s" .Release.Namespace .Release.Name)) -}}
{{- $service := ($there.spec | default dict).service | default dict -}}
{{- fail (printf "metricsServer.enabled=true, but this cluster has external metrics already: the APIService v1beta1.external.metrics.k8s.io leads to %s/%s, and there can be only one. Leave metricsServer.enabled=false and give ConsumerGroups autoscaling.mode Direct, which needs none" ($service.namespace | default "?") ($service.name | default "?")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Whether to render an object of the Prometheus operator: (dict "root" $ "kind" KIND "value" VALUE). Says "true" or
nothing; fails where it is asked for in a cluster that does not know the kind.
*/}}
{{- define "agentstream.knowsKind" -}}
{{- if or (eq .root.Values.metrics.renderMode "alwaysRender") (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) -}}
true
{{- else if eq .root.Values.metrics.renderMode "failIfMissing" -}}
{{- fail (printf "%s.enabled=true, but this cluster has no %s (monitoring.coreos.com/v1): install the Prometheus operator first, or set metrics.renderMode to skipIfMissing, or to alwaysRender where no cluster is asked" .value .kind) -}}
{{- end -}}
{{- end -}}
