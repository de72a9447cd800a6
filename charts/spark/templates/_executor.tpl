{{/* The pod of an executor, to which Spark adds its image, its arguments and its memory. */}}
{{- define "spark.executor" -}}
apiVersion: v1
kind: Pod
metadata:
  labels: {{- include "common.podLabels" (list . "executor") | nindent 4 }}
spec: {{- include "common.pod" (dict "root" . "component" "executor" "image" "pipeline" "args" (list "executor")
        "env" (include "common.clientEnv" (dict "root" .) | fromJsonArray) "envFrom" (include "common.clientEnvFrom" . | fromJsonArray)
        "config" (include "common.clientConfig" . | fromJson) "values" .Values.executors "what" "spark.executors"
        "heap" .Values.executors.heap "beside" 384 "cpu" .Values.executors.cpu "restart" "Never") | nindent 2 }}
{{- end -}}
