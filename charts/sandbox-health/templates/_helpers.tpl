{{/* The name for labels. */}}
{{- define "sandbox-health.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The stem of all names. 52 characters, since "-controller" follows and a label value ends at 63. */}}
{{- define "sandbox-health.fullname" -}}
{{- $name := include "sandbox-health.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of one component: a list of the root and the component. Immutable, so without versions. */}}
{{- define "sandbox-health.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sandbox-health.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The same as the API takes it in a request: a=b,c=d. */}}
{{- define "sandbox-health.selectorText" -}}
{{- $pairs := list -}}
{{- range $key, $value := include "sandbox-health.selector" . | fromYaml -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* The labels of every object: a list of the root and the component. */}}
{{- define "sandbox-health.labels" -}}
{{- $root := index . 0 -}}
{{ include "sandbox-health.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The image, by digest where one is given. */}}
{{- define "sandbox-health.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The labels of a component's pods. The chart's own come last: a user's label must not break the selector. */}}
{{- define "sandbox-health.podLabels" -}}
{{- $root := index . 0 -}}
{{- merge (include "sandbox-health.labels" . | fromYaml) $root.Values.podLabels | toYaml -}}
{{- end -}}

{{/* The annotations of every pod, or nothing. A user's win. */}}
{{- define "sandbox-health.podAnnotations" -}}
{{- $annotations := deepCopy .Values.podAnnotations -}}
{{- if .Values.metrics.annotations -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/port" "8080" "prometheus.io/path" "/metrics" -}}
{{- $annotations = merge $annotations $scrape -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The agent and the controller need no right beyond an unprivileged process's; all that they write goes to stderr. Not 65535,
as pauses have it: a process may signal those of its own uid, and the agent must not be able to end a pause. */}}
{{- define "sandbox-health.securityContext" -}}
runAsNonRoot: true
runAsUser: 64535
runAsGroup: 64535
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop:
    - ALL
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The value watch.pods as a flag has it. */}}
{{- define "sandbox-health.watchPods" -}}
{{- get (dict "SharedPIDNamespace" "shared-pid-namespace" "All" "all") .Values.watch.pods -}}
{{- end -}}

{{/* The port and who asks it. Ready says "does its work"; alive says only "answers", since a restart mends nothing that is
     waited for. */}}
{{- define "sandbox-health.http" -}}
ports:
  - name: http
    containerPort: 8080
    protocol: TCP
livenessProbe:
  httpGet:
    path: /healthz
    port: http
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* Where the pods of a component may run: its values. */}}
{{- define "sandbox-health.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
