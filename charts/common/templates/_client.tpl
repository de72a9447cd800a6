{{/* What every pod of the image `pipeline` is told: how to reach the servers. */}}
{{- define "common.clientEnv" -}}
{{- $env := list (include "common.password" .root) "{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}" -}}
{{- with .heap }}{{ $env = append $env (printf "{name: HEAP, value: %s}" .) }}{{ end -}}
{{- toJson $env -}}
{{- end -}}

{{- define "common.clientEnvFrom" -}}
{{- list (printf "{configMapRef: {name: %s}}" (include "common.name" (list . "hdfs"))) (printf "{configMapRef: {name: %s}}" (include "common.name" (list . "servers"))) | toJson -}}
{{- end -}}

{{- define "common.clientConfig" -}}
{{- dict "hadoop" (include "common.name" (list . "hadoop")) "gridstead" (include "common.name" (list . "pipeline")) "spark" (include "common.name" (list . "spark")) | toJson -}}
{{- end -}}
