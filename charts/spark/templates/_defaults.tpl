{{/* Where jobs run. A driver is a pod that submits a job; its executors find it by its address, and go when it goes. */}}
{{- define "spark.defaults" -}}
{{- $ports := include "common.ports" . | fromYaml -}}
{{- if eq .Values.global.sparkMaster "local" -}}
spark.master local[2]
{{- else -}}
spark.master k8s://https://kubernetes.default.svc
{{- end }}
spark.kubernetes.namespace {{ .Release.Namespace }}
spark.kubernetes.container.image {{ include "common.image" (list . "pipeline") }}
spark.kubernetes.container.image.pullPolicy {{ .Values.global.image.pullPolicy }}
{{- with .Values.global.image.pullSecrets }}
spark.kubernetes.container.image.pullSecrets {{ join "," . }}
{{- end }}
spark.kubernetes.executor.podTemplateFile /etc/gridstead/spark/executor.yaml
spark.kubernetes.executor.podTemplateContainerName executor
spark.kubernetes.executor.request.cores {{ .Values.executors.cpu }}
spark.kubernetes.driver.pod.name @{HOSTNAME}
spark.driver.host @{POD_IP}
spark.driver.bindAddress @{POD_IP}
spark.driver.memory {{ printf "@{HEAP:-%s}" .Values.driver.heap }}
spark.driver.port {{ $ports.spark_driver }}
spark.blockManager.port {{ $ports.spark_blocks }}
spark.executor.instances {{ .Values.executors.instances }}
spark.executor.cores {{ .Values.executors.cores }}
spark.executor.memory {{ .Values.executors.heap }}
spark.eventLog.enabled {{ .Values.history.enabled }}
{{- if .Values.global.metrics }}
spark.metrics.namespace ${spark.app.name}.${spark.app.id}
spark.metrics.appStatusSource.enabled true
spark.metrics.conf.*.source.jvm.class org.apache.spark.metrics.source.JvmSource
spark.metrics.conf.*.sink.graphite.class org.apache.spark.metrics.sink.GraphiteSink
spark.metrics.conf.*.sink.graphite.host {{ include "common.service" (list . "victoriametrics") }}
spark.metrics.conf.*.sink.graphite.port {{ $ports.victoriametrics_graphite }}
spark.metrics.conf.*.sink.graphite.period 5
spark.metrics.conf.*.sink.graphite.unit seconds
{{- end }}
{{- end -}}
