{{/*
A pod of an image of ours: read-only root, unprivileged user, and the places that may be written. (dict
  "root" "component" "image" "args" "env" (list of YAML) "envFrom" "config" (dict of /config's directories to names of ConfigMaps)
  "values" (resources, scheduling) "what" (their path) "heap" "beside" "cpu" "ports" (names) "probes" (YAML) "grace"
  "init" (containers before it) "sidecars" (containers beside it: "name" "args" and what else differs) "account" "data" (directory below /var/lib/gridstead with the volume `data`) "scratch" (such with an emptyDir))
*/}}
{{- define "common.pod" -}}
{{- $root := .root -}}
enableServiceLinks: false
{{- with $root.Values.global.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- if .account }}
serviceAccountName: {{ .account }}
{{- else }}
automountServiceAccountToken: false
{{- end }}
{{- with .restart }}
restartPolicy: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ .grace | default 30 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .values.scheduling }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  podAntiAffinity:
    {{- if eq .antiAffinity "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "common.selector" (list $root $.component) | nindent 12 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "common.selector" (list $root $.component) | nindent 14 }}
    {{- end }}
{{- end }}
{{- with .init }}
initContainers:
  {{- range . }}
  - {{- include "common.container" (merge (dict "name" .name "args" .args) (omit $ "probes" "ports")) | nindent 4 }}
  {{- end }}
{{- end }}
containers:
  - {{- include "common.container" (merge (dict "name" .component) $) | nindent 4 }}
  {{- range .sidecars }}
  - {{- include "common.container" (merge . (omit $ "probes" "ports" "env" "values")) | nindent 4 }}
  {{- end }}
volumes:
  - {name: etc, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
  {{- if not .data }}
  - {name: scratch, emptyDir: {}}
  {{- end }}
  {{- range $directory, $name := .config }}
  - {name: config-{{ $directory }}, configMap: {name: {{ $name }}}}
  {{- end }}
{{- end -}}

{{/* A container of such a pod, with everything mounted; the same dict, and "name". */}}
{{- define "common.container" -}}
{{- $root := .root -}}
{{- $ports := include "common.ports" $root | fromYaml -}}
name: {{ .name }}
image: {{ include "common.image" (list $root .image) }}
imagePullPolicy: {{ $root.Values.global.image.pullPolicy }}
args: {{ toJson .args }}
{{- with .env }}
env:
  {{- range . }}
  - {{ . }}
  {{- end }}
{{- end }}
{{- with .envFrom }}
envFrom:
  {{- range . }}
  - {{ . }}
  {{- end }}
{{- end }}
{{- with .ports }}
ports:
  {{- range . }}
  - {name: {{ include "common.portName" . }}, containerPort: {{ index $ports . }}, protocol: {{ include "common.protocol" . }}}
  {{- end }}
{{- end }}
{{- with .probes }}
{{ . }}
{{- end }}
resources: {{- include "common.resources" . | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: etc, mountPath: /etc/gridstead}
  - {name: tmp, mountPath: /tmp}
  {{- if .data }}
  - {name: data, mountPath: /var/lib/gridstead/{{ .data }}}
  {{- else }}
  - {name: scratch, mountPath: /var/lib/gridstead}
  {{- end }}
  {{- range $directory, $name := .config }}
  - {name: config-{{ $directory }}, mountPath: /config/{{ $directory }}, readOnly: true}
  {{- end }}
{{- end -}}

{{/* Name of a port, at most 15 characters: what stands behind the component. */}}
{{- define "common.portName" -}}
{{- $words := splitList "_" . -}}
{{- if eq (len $words) 1 }}{{ . }}{{ else }}{{ last $words }}{{ end -}}
{{- end -}}

{{- define "common.protocol" -}}
{{- if eq . "collector_xrootd" }}UDP{{ else }}TCP{{ end -}}
{{- end -}}

{{/*
Probes: of a server that takes connections. (dict "live" port "ready" (YAML of a probe's action), and for some "alive" (action instead of a
connection to the port) "started" (action that must succeed once, and may take half a minute: an upgrade goes on to the next pod after it))
*/}}
{{- define "common.probes" -}}
startupProbe:
  {{- if .started }}
  {{- .started | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 30
  failureThreshold: 240
  {{- else }}
  tcpSocket: {port: {{ .live }}}
  periodSeconds: 2
  failureThreshold: 300
  {{- end }}
livenessProbe:
  {{- .alive | default (printf "tcpSocket: {port: %s}" .live) | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- .ready | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* A probe that runs a script of bash. */}}
{{- define "common.script" -}}
exec:
  command:
    - bash
    - -c
    - | {{- . | nindent 6 }}
{{- end -}}

{{/* A probe that sends a word to a port, and looks for another in the answer: (list port word answer). */}}
{{- define "common.ask" -}}
{{- include "common.script" (printf "exec 3<>/dev/tcp/127.0.0.1/%d; echo %s >&3; grep -q '%s' <&3" (int (index . 0)) (index . 1) (index . 2)) -}}
{{- end -}}

{{/* A probe that asks a server of Hadoop by JMX, and looks for a word in what it says: (list port bean word). */}}
{{- define "common.jmx" -}}
{{- $script := "exec 3<>/dev/tcp/127.0.0.1/%d\nprintf 'GET /jmx?qry=%s HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3\ngrep -q '%s' <&3" -}}
{{- include "common.script" (printf $script (int (index . 0)) (index . 1) (index . 2)) -}}
{{- end -}}
