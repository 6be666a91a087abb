{{/* The queue server's ServiceAccount; the operator's if none is created. */}}
{{- define "agentstream.queueAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- printf "%s-queue-server" (include "agentstream.fullname" .) -}}
{{- else -}}
{{- include "agentstream.serviceAccountName" . -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the URL for the queue server. */}}
{{- define "agentstream.queueRedisSecretName" -}}
{{- default (include "agentstream.redisSecretName" .) .Values.queueServer.redis.existingSecret -}}
{{- end -}}

{{/* The Secret with the queue server's certificate. */}}
{{- define "agentstream.queueTlsName" -}}
{{- default (printf "%s-queue-tls" (include "agentstream.fullname" .)) .Values.queueServer.tls.existingSecret -}}
{{- end -}}

{{/* The names of the queue server's Service, as a JSON array. */}}
{{- define "agentstream.queueServiceNames" -}}
{{- $name := printf "%s-queue-server" (include "agentstream.fullname" .) -}}
{{- $service := printf "%s.%s" $name .Release.Namespace -}}
{{- list $name $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) | toJson -}}
{{- end -}}
