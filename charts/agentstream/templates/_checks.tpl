{{/* Checks that values.schema.json cannot express with a message of its own. */}}
{{- define "agentstream.checks" -}}
{{- if and .Values.redis.embedded .Values.redis.existingSecret -}}
{{- fail (printf "redis.embedded and redis.existingSecret exclude each other: unset redis.existingSecret (%q) to install a Redis for trials, or set redis.embedded=false to use your own server" .Values.redis.existingSecret) -}}
{{- end -}}
{{- if not (or .Values.redis.embedded .Values.redis.existingSecret) -}}
{{- fail "no Redis configured: set redis.embedded=true to install one for trials, or redis.existingSecret=NAME to use your own, where NAME is a Secret in this namespace whose key `url` is redis://USER:PASSWORD@HOST:PORT" -}}
{{- end -}}
{{- if and .Values.redis.embedded .Values.redis.caKey -}}
{{- fail "redis.caKey is a key of redis.existingSecret; the embedded Redis has no TLS: unset one of them" -}}
{{- end -}}
{{- if and .Values.allNamespaces .Values.watchNamespaces -}}
{{- fail (printf "allNamespaces and watchNamespaces exclude each other: unset watchNamespaces (%s) to watch all namespaces, or set allNamespaces=false" (join ", " .Values.watchNamespaces)) -}}
{{- end -}}
{{- if not (or .Values.allNamespaces .Values.watchNamespaces) -}}
{{- fail "no namespaces to watch: set allNamespaces=true, or watchNamespaces={team-a,team-b}. In the namespaces that it watches, the operator may read and write Secrets and create Deployments" -}}
{{- end -}}
{{- if and .Values.admissionPolicy.enabled (semverCompare "<1.30-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "admissionPolicy.enabled=true needs Kubernetes 1.30 or newer, and this cluster has %s: upgrade it, or set admissionPolicy.enabled=false; then whoever may create ConsumerGroups can run any pod in their namespace" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if .Values.metricsServer.enabled -}}
{{- $there := lookup "apiregistration.k8s.io/v1" "APIService" "" "v1beta1.external.metrics.k8s.io" | default dict -}}
{{- $notes := ($there.metadata | default dict).annotations | default dict -}}
{{- $owner := printf "%s/%s" (index $notes "meta.helm.sh/release-namespace" | default "") (index $notes "meta.helm.sh/release-name" | default "") -}}
{{- if and $there (ne $owner (printf "%s/%s" .Release.Namespace .Release.Name)) -}}
{{- $service := ($there.spec | default dict).service | default dict -}}
{{- fail (printf "metricsServer.enabled=true, but Service %s/%s already serves the APIService v1beta1.external.metrics.k8s.io, of which a cluster has only one. Set metricsServer.enabled=false, and autoscaling.mode: Direct in ConsumerGroups, which needs no external metrics" ($service.namespace | default "?") ($service.name | default "?")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Whether to render an object of the Prometheus operator: (dict "root" $ "kind" KIND "value" VALUE). Renders "true" or
nothing; fails if the value is set and the cluster lacks the CRD.
*/}}
{{- define "agentstream.knowsKind" -}}
{{- if or (eq .root.Values.metrics.renderMode "alwaysRender") (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) -}}
true
{{- else if eq .root.Values.metrics.renderMode "failIfMissing" -}}
{{- fail (printf "%s.enabled=true, but this cluster has no CRD %s (monitoring.coreos.com/v1): install the Prometheus operator first, or set metrics.renderMode to skipIfMissing, or to alwaysRender for rendering without a cluster" .value .kind) -}}
{{- end -}}
{{- end -}}
