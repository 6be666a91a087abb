{{/* Restricts a policy to the watched namespaces. */}}
{{- define "agentstream.watchedSelector" -}}
{{- with .Values.watchNamespaces -}}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: In
      values:
        {{- toYaml . | nindent 8 }}
{{- end -}}
{{- end -}}

{{/* Has a policy enforced: (dict "root" $ "name" NAME). */}}
{{- define "agentstream.policyBinding" }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "agentstream.labels" .root | nindent 4 }}
    app.kubernetes.io/component: operator
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end -}}
