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

{{/*
Changes with the embedded server's password, in annotations that more people may read than the Secret: by scrypt, so
that a weak password, if one was put into the Secret, cannot be guessed from it.
*/}}
{{- define "agentstream.redisChecksum" -}}
{{- if not (hasKey .Values.redis "checksum") -}}
{{- $password := include "agentstream.redisPassword" . -}}
{{- $_ := set .Values.redis "checksum" (derivePassword 1 "maximum" $password .Release.Name .Release.Namespace | sha256sum) -}}
{{- end -}}
{{- .Values.redis.checksum -}}
{{- end -}}
