{{/*
The embedded server's password: what the Secret has, else a new one, the same wherever a template of this rendering
asks for it.
*/}}
{{- define "agentstream.redisPassword" -}}
{{- if not (hasKey .Values.redis "generated") -}}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "agentstream.redisSecretName" .) | default dict -}}
{{- $known := index ($secret.data | default dict) "password" | default "" | b64dec -}}
{{- $_ := set .Values.redis "generated" (default (randAlphaNum 40) $known) -}}
{{- end -}}
{{- .Values.redis.generated -}}
{{- end -}}
