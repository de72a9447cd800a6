{{/*
A StatefulSet of servers with its headless service: the dict of common.pod, and "replicas" "management" (Parallel or OrderedReady, which no upgrade can change),
"checksum" (text whose change restarts the pods), "fixed" (whether their number cannot change).
*/}}
{{- define "common.servers" -}}
{{- $root := .root -}}
{{- $name := include "common.name" (list $root .component) -}}
{{- $ports := include "common.ports" $root | fromYaml -}}
{{- include "common.scaleIn" . -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  labels: {{- include "common.labels" (list $root .component) | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true # servers find each other, and themselves, before they are ready
  selector: {{- include "common.selector" (list $root .component) | nindent 4 }}
  ports:
    {{- range .ports }}
    - {name: {{ include "common.portName" . }}, port: {{ index $ports . }}, targetPort: {{ include "common.portName" . }}, protocol: {{ include "common.protocol" . }}}
    {{- end }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  labels: {{- include "common.labels" (list $root .component) | nindent 4 }}
spec:
  serviceName: {{ $name }}
  replicas: {{ .replicas | default 1 }}
  podManagementPolicy: {{ .management | default "OrderedReady" }}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Retain}
  selector:
    matchLabels: {{- include "common.selector" (list $root .component) | nindent 6 }}
  template:
    metadata:
      labels: {{- include "common.podLabels" (list $root .component) | nindent 8 }}
      {{- with .checksum }}
      annotations: {checksum/config: {{ . | sha256sum }}}
      {{- end }}
    spec: {{- include "common.pod" . | nindent 6 }}
  {{- if .data }}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels: {{- include "common.selector" (list $root .component) | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.storage.class | default $root.Values.global.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .values.storage.size }}}}
  {{- end }}
{{- end -}}

{{/* A budget of disruptions: one pod at a time. (list root "component") */}}
{{- define "common.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "common.name" . }}
  labels: {{- include "common.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "common.selector" . | nindent 6 }}
{{- end -}}

{{/* Refuse to take pods away with the data that only they have. */}}
{{- define "common.scaleIn" -}}
{{- if .data -}}
{{- $there := lookup "apps/v1" "StatefulSet" .root.Release.Namespace (include "common.name" (list .root .component)) -}}
{{- $wanted := .replicas | default 1 | int -}}
{{- if and $there .fixed (ne (int $there.spec.replicas) $wanted) -}}
{{- fail (printf "%s has %d pods and would get %d: they agree by votes, and who has one is written when the release is installed. Keep %d." .component (int $there.spec.replicas) $wanted (int $there.spec.replicas)) -}}
{{- end -}}
{{- if and $there (gt (int $there.spec.replicas) $wanted) (ne .root.Values.global.confirmScaleIn .component) -}}
{{- fail (printf "%s has %d pods and would get %d: what only the others hold would be out of reach. Move it off them first (docs/operations/kubernetes.md), then say global.confirmScaleIn=%s." .component (int $there.spec.replicas) $wanted .component) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Who may reach a component: (dict "root" "component" "from" (list of components of this release) "peers" (further peers)
"ports" (names) "open" (dict of ports that others may reach: name to peers)).
*/}}
{{- define "common.ingress" -}}
{{- $root := .root -}}
{{- $ports := include "common.ports" $root | fromYaml -}}
{{- if $root.Values.global.networkPolicy -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "common.name" (list $root .component) }}
  labels: {{- include "common.labels" (list $root .component) | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "common.selector" (list $root .component) | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - ports:
        {{- range .ports }}
        - {port: {{ index $ports . }}, protocol: {{ include "common.protocol" . }}}
        {{- end }}
      from:
        {{- range .from }}
        - podSelector:
            matchLabels: {{- include "common.selector" (list $root .) | nindent 14 }}
        {{- end }}
        {{- with .peers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- range $port, $peers := .open }}
    - ports: [{port: {{ index $ports $port }}, protocol: {{ include "common.protocol" $port }}}]
      from: {{- toYaml $peers | nindent 8 }}
    {{- end }}
  egress:
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    - to:
        - podSelector:
            matchLabels: {app.kubernetes.io/instance: {{ $root.Release.Name }}}
    {{- with .egress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* The API server, wherever it is: a rule of egress. */}}
{{- define "common.toApi" -}}
- ports: [{port: 443, protocol: TCP}, {port: 6443, protocol: TCP}]
{{- end -}}
