{{/*
Names. A component is called as its service on a host (hdfs-namenode, kafka, …): RELEASE-COMPONENT.
Arguments of most of these: (list . "component").
*/}}
{{- define "common.name" -}}
{{- printf "%s-%s" (index . 0).Release.Name (index . 1) -}}
{{- end -}}

{{/* The headless service of a component, whole, so that a pod finds its own name in its /etc/hosts. */}}
{{- define "common.service" -}}
{{- $root := index . 0 -}}
{{- printf "%s.%s.svc.%s" (include "common.name" .) $root.Release.Namespace $root.Values.global.clusterDomain -}}
{{- end -}}

{{/* One pod of a StatefulSet: (list . "component" ordinal). */}}
{{- define "common.host" -}}
{{- printf "%s-%d.%s" (include "common.name" .) (int (index . 2)) (include "common.service" .) -}}
{{- end -}}

{{- define "common.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods: nothing that a new version of the chart changes, or it would restart every pod. */}}
{{- define "common.podLabels" -}}
{{ include "common.selector" . }}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/part-of: gridstead
{{- end -}}

{{- define "common.labels" -}}
{{- $root := index . 0 -}}
{{ include "common.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* An image: (list . "kafka"). */}}
{{- define "common.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.global.image -}}
{{- printf "%s/%s:%s" $image.registry (index . 1) (get ($image.tags | default dict) (index . 1) | default $image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}

{{/* The password of the broker's user, as an entry of env. */}}
{{- define "common.password" -}}
{name: CLIENT_PASSWORD, valueFrom: {secretKeyRef: {name: {{ .Values.global.brokerSecret | default (include "common.name" (list . "activemq")) }}, key: password}}}
{{- end -}}
