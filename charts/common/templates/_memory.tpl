{{/* A heap (512m, 2g) in MiB. */}}
{{- define "common.mib" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "g" . }}{{ mul $number 1024 }}{{ else }}{{ $number }}{{ end -}}
{{- end -}}

{{/* A quantity of memory of Kubernetes in MiB; 0 where it is not understood. */}}
{{- define "common.quantityMib" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text | float64 -}}
{{- if hasSuffix "Gi" $text }}{{ mulf $number 1024 | floor | int }}
{{- else if hasSuffix "Mi" $text }}{{ floor $number | int }}
{{- else if hasSuffix "G" $text }}{{ divf (mulf $number 1000000000) 1048576 | floor | int }}
{{- else if hasSuffix "M" $text }}{{ divf (mulf $number 1000000) 1048576 | floor | int }}
{{- else if regexMatch "^[0-9]+$" $text }}{{ divf $number 1048576 | floor | int }}
{{- else }}0{{ end -}}
{{- end -}}

{{/*
Resources of a server, from its heap unless given: (dict "heap" … "beside" MiB "cpu" … "values" with resources given, "what" path of the values).
Beside the heap a process needs memory for its classes, threads and buffers; a limit below that is killed sooner or later.
*/}}
{{- define "common.resources" -}}
{{- $heap := include "common.mib" .heap | int -}}
{{- $least := add $heap .beside | int -}}
{{- $default := dict "requests" (dict "cpu" .cpu "memory" (printf "%dMi" $least)) "limits" (dict "memory" (printf "%dMi" (add $least (div $heap 4)))) -}}
{{- $merged := mergeOverwrite $default (.values.resources | default dict | deepCopy) -}}
{{- $limit := include "common.quantityMib" $merged.limits.memory | int -}}
{{- if and (gt $limit 0) (lt $limit $least) -}}
{{- fail (printf "%s.resources.limits.memory is %s, but the heap of %s needs %dMi beside it: give at least %dMi, or a smaller %s.heap." .what $merged.limits.memory .heap (int .beside) $least .what) -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}
