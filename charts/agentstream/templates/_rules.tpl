{{/* The operator's rules for resources and their children. */}}
{{- define "agentstream.operatorRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [get, list, watch, patch]
# deletes those that ended as long ago as they ask for
- apiGroups: [agentstream.dev]
  resources: [streamreplays]
  verbs: [get, list, watch, delete]
- apiGroups: [agentstream.dev]
  resources: [agentstreams/status, consumergroups/status, streamreplays/status]
  verbs: [patch]
# one per agent with its binding, and one per signed stream with its keys
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# releases the messages of deleted pods, and sets pod deletion costs
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# its uid tells it from a former namespace of the same name
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
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

{{/* The metrics server's rules. */}}
{{- define "agentstream.metricsServerRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [list, watch]
{{- end -}}

{{/* The queue server's rules: it writes StreamReplays for callers whose right to it was reviewed. */}}
{{- define "agentstream.queueServerRules" -}}
- apiGroups: [agentstream.dev]
  resources: [agentstreams, consumergroups]
  verbs: [list, watch]
- apiGroups: [agentstream.dev]
  resources: [streamreplays]
  verbs: [get, list, create, patch, delete]
# who changed or deleted a replay
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* What people may by the ServiceAccount for the command line. */}}
{{- define "agentstream.cliRules" -}}
- apiGroups: [agentstream.dev]
  resources: [consumergroups/lag]
  verbs: [get]
- apiGroups: [agentstream.dev]
  resources: [streamreplays]
  verbs: [get, list]
{{- if eq .Values.queueServer.cliMay "everything" }}
- apiGroups: [agentstream.dev]
  resources: [agentstreams/messages, consumergroups/deadletters]
  verbs: [get]
- apiGroups: [agentstream.dev]
  resources: [streamreplays]
  verbs: [create, patch, delete]
{{- end }}
{{- end -}}

{{/* Rules for removing the finalizers. */}}
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
