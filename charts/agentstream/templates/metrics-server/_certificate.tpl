{{/* The Secret with the metrics server's certificate. */}}
{{- define "agentstream.metricsTlsName" -}}
{{- printf "%s-metrics-tls" (include "agentstream.fullname" .) -}}
{{- end -}}

{{/*
The metrics server's certificate, its key and CA, as JSON of the Secret's data: what the Secret has, else new
ones, the same wherever a template of this rendering asks for them.
*/}}
{{- define "agentstream.metricsTls" -}}
{{- if not (hasKey .Values.metricsServer "generated") -}}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "agentstream.metricsTlsName" .) | default dict -}}
{{- $data := pick ($secret.data | default dict) "tls.crt" "tls.key" "ca.crt" -}}
{{- if ne (len $data) 3 -}}
{{- $service := printf "%s-metrics-server.%s" (include "agentstream.fullname" .) .Release.Namespace -}}
{{- $names := list (printf "%s.svc" $service) $service (printf "%s.svc.cluster.local" $service) -}}
{{- $authority := genCA "agentstream-metrics" 3650 -}}
{{- $made := genSignedCert "agentstream-metrics-server" nil $names 3650 $authority -}}
{{- $data = dict "tls.crt" (b64enc $made.Cert) "tls.key" (b64enc $made.Key) "ca.crt" (b64enc $authority.Cert) -}}
{{- end -}}
{{- $_ := set .Values.metricsServer "generated" (toJson $data) -}}
{{- end -}}
{{- .Values.metricsServer.generated -}}
{{- end -}}
