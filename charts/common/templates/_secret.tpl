{{/* A secret of a component with the key `password`: made once, kept afterwards. (list . "component") */}}
{{- define "common.passwordSecret" -}}
{{- $name := include "common.name" . -}}
{{- $before := lookup "v1" "Secret" (index . 0).Release.Namespace $name | default dict -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ $name }}
  labels: {{- include "common.labels" . | nindent 4 }}
type: Opaque
data:
  password: {{ dig "data" "password" "" $before | default (randAlphaNum 32 | b64enc) }}
{{- end -}}
