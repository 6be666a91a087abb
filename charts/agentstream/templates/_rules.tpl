{{/* What the operator does to resources and their children. */}}
{{- define "agentstream.operatorRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [get, list, watch, patch]
- apiGroups: [agentstream.dev]
  resources: [agentstreams/status, consumergroups/status]
  verbs: [patch]
# one per agent: how it reaches the server; one per signed stream: its keys
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# when a consumer's pod is gone, its messages are handed on at once; when there are to be fewer, idle ones go first
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments/scale]
  verbs: [patch]
# one per group in mode HPA
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
{{- end -}}

{{/* What the metrics server reads. */}}
{{- define "agentstream.metricsServerRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [list, watch]
{{- end -}}

{{/* What removing the finalizers takes. */}}
{{- define "agentstream.hookRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [get, list, patch]
{{- end -}}

{{/*
The same rules for the whole cluster, or for each of the watched namespaces:
(dict "root" $ "name" NAME "account" ServiceAccount "rules" TEXT "annotations" MAP "component" NAME).
*/}}
{{- define "agentstream.grant" -}}
{{- $root := .root -}}
{{- $grant := . -}}
{{- range $namespace := default (list "") .root.Values.watchNamespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "Role" "ClusterRole" (ne $namespace "") }}
metadata:
  name: {{ $grant.name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- include "agentstream.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $grant.component }}
  {{- with $grant.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
rules:
  {{- $grant.rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "RoleBinding" "ClusterRoleBinding" (ne $namespace "") }}
metadata:
  name: {{ $grant.name }}
  {{- if $namespace }}
  namespace: {{ $namespace }}
  {{- end }}
  labels:
    {{- include "agentstream.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $grant.component }}
  {{- with $grant.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ ternary "Role" "ClusterRole" (ne $namespace "") }}
  name: {{ $grant.name }}
subjects:
  - kind: ServiceAccount
    name: {{ $grant.account }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}
