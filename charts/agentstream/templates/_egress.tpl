{{/* Renders "true" if the address of Redis is only in the Secret, else nothing. */}}
{{- define "agentstream.redisIsAnywhere" -}}
{{- if and .Values.redis.existingSecret (not (or .Values.networkPolicy.redisPorts .Values.networkPolicy.redisTo)) -}}
true
{{- end -}}
{{- end -}}

{{/* Egress to DNS and the API server. */}}
{{- define "agentstream.egressToCluster" -}}
# DNS; OpenShift's servers listen on 5353
- ports:
    {{- range $port := list 53 5353 }}
    - port: {{ $port }}
      protocol: UDP
    - port: {{ $port }}
      protocol: TCP
    {{- end }}
# the API server
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{/* Egress to Redis or Valkey, if its address is in the values. */}}
{{- define "agentstream.egressToRedis" -}}
# Redis or Valkey
{{- if .Values.redis.embedded }}
- to:
    - podSelector:
        matchLabels:
          {{- include "agentstream.selectorLabels" . | nindent 10 }}
          app.kubernetes.io/component: redis
  ports:
    - port: 6379
      protocol: TCP
{{- else }}
- to:
    {{- toYaml .Values.networkPolicy.redisTo | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.redisPorts }}
    - port: {{ . }}
      protocol: TCP
    {{- else }}
    []
    {{- end }}
{{- end }}
{{- end -}}
