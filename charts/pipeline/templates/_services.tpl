{{/* What `gridstead status` and `doctor` look at, in the order in which it starts: a list of TOML's tables. */}}
{{- define "pipeline.services" -}}
{{- $ports := include "common.ports" . | fromYaml -}}
{{- range $service := .Files.Get "files/services.yaml" | fromYamlArray }}
{{- if or (not $service.when) (get $.Values.global ($service.when | default "")) }}
{{- $host := include "common.service" (list $ $service.name) }}
{{- $url := printf "%s:%d%s" $host (int (index $ports $service.port)) ($service.path | default "") }}
{{- if $service.path }}{{ $url = printf "http://%s" $url }}{{ end }}
- '{name = {{ $service.name | quote }}, role = {{ $service.role | quote }}, check = {{ ternary "http" "tcp" (hasKey $service "path") | quote }}, url = {{ $url | quote }}, log = {{ printf "kubectl logs -l app.kubernetes.io/component=%s" $service.name | quote }}}'
{{- end }}
{{- end }}
{{- end -}}
