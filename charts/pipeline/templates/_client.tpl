{{/* What every pod of the image `pipeline` is told: how to reach the servers. */}}
{{- define "pipeline.env" -}}
{{- $env := list (include "common.password" .root) -}}
{{- with .heap }}{{ $env = append $env (printf "{name: HEAP, value: %s}" .) }}{{ end -}}
{{- toJson $env -}}
{{- end -}}

{{- define "pipeline.envFrom" -}}
{{- list (printf "{configMapRef: {name: %s}}" (include "common.name" (list . "hdfs"))) (printf "{configMapRef: {name: %s}}" (include "common.name" (list . "servers"))) | toJson -}}
{{- end -}}

{{- define "pipeline.config" -}}
{{- dict "gridstead" (include "common.name" (list . "pipeline")) "spark" (include "common.name" (list . "spark")) | toJson -}}
{{- end -}}
