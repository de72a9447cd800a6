{{/* The chosen checks, as arguments of `gridstead smoke`. */}}
{{- define "gridstead.checks" -}}
{{- $arguments := list -}}
{{- range .Values.test.checks }}{{ $arguments = concat $arguments (list "--only" .) }}{{ end -}}
{{- toJson $arguments -}}
{{- end -}}
