{{/* What gridstead.toml has besides what the roles rendered. */}}
{{- define "pipeline.settings" -}}
services = [{{ include "pipeline.services" . | fromYamlArray | join ", " }}]
appliance.supervisor = "container"
appliance.name = {{ .Release.Name | quote }}
collector.bind = {{ include "common.host" (list . "collector" 0) | quote }}
collector.pseudonym_keys = "/var/lib/gridstead/collector/pseudonyms.keys"
bridge.bind = {{ include "common.host" (list . "bridge" 0) | quote }}
stream.bind = {{ include "common.host" (list . "stream" 0) | quote }}
spark.master = {{ ternary "local[2]" "k8s://https://kubernetes.default.svc" (eq .Values.global.sparkMaster "local") | quote }}
bridge.replication = {{ ternary 3 1 .Values.global.highAvailability }}
elasticsearch.replicas = {{ ternary 1 0 .Values.global.highAvailability }}
schedule.batch_interval_s = 0
schedule.batch_days = {{ int .Values.batch.days }}
schedule.compact_interval_s = 0
{{- range $key, $value := .Values.settings }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end -}}
