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
{{ include "sandbox-health.release" $root }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* What selects all pods of the release. */}}
{{- define "sandbox-health.release" -}}
app.kubernetes.io/name: {{ include "sandbox-health.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The labels of every object: a list of the root and the component. The chart's own win. */}}
{{- define "sandbox-health.labels" -}}
{{- $root := index . 0 -}}
{{- merge (include "sandbox-health.ownLabels" . | fromYaml) ($root.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{- define "sandbox-health.ownLabels" -}}
{{- $root := index . 0 -}}
{{ include "sandbox-health.selector" . }}
{{/* Whatever nameOverride is: the alerts' descriptions select pods by it. */ -}}
app.kubernetes.io/part-of: {{ $root.Chart.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The labels of a component's pods. The chart's own win: a user's label must not break the selector. */}}
{{- define "sandbox-health.podLabels" -}}
{{- $root := index . 0 -}}
{{- $own := index $root.Values (index . 1) "podLabels" | default dict -}}
{{- merge (include "sandbox-health.ownLabels" . | fromYaml) $own ($root.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{/* The annotations of a component's pods, or nothing: a list of the root and the component. A user's win. Those of a scrape are
left out where a PodMonitor has the pods scraped: twice would double each sum. */}}
{{- define "sandbox-health.podAnnotations" -}}
{{- $root := index . 0 -}}
{{- $annotations := deepCopy (index $root.Values (index . 1) "podAnnotations" | default dict) -}}
{{- if and $root.Values.metrics.annotations (not ($root.Values.monitoring.podMonitor).enabled) -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/port" "8080" "prometheus.io/path" "/metrics" -}}
{{- $annotations = merge $annotations $scrape -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The image, by digest where one is given. */}}
{{- define "sandbox-health.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of a component's account: a list of the root and the component. Rights are bound to it, so it is never the
namespace's `default`, which every pod may have. */}}
{{- define "sandbox-health.account" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := index $root.Values $component "serviceAccount" -}}
{{- if or $account.name $account.create -}}
{{- default (printf "%s-%s" (include "sandbox-health.fullname" $root) $component) $account.name -}}
{{- else -}}
{{- fail (printf "%s.serviceAccount.name is needed where %s.serviceAccount.create is false" $component $component) -}}
{{- end -}}
{{- end -}}

{{/* The account itself. The pod that needs the token asks for it; no other gets it by naming the account. */}}
{{- define "sandbox-health.serviceAccount" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "sandbox-health.account" . }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "sandbox-health.labels" . | nindent 4 }}
  {{- with (index $root.Values (index . 1) "serviceAccount").annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{/* The value watch.pods as a flag has it. */}}
{{- define "sandbox-health.watchPods" -}}
{{- get (dict "SharedPIDNamespace" "shared-pid-namespace" "All" "all") .Values.watch.pods -}}
{{- end -}}

{{/* The port of a component and who asks it: its values. */}}
{{- define "sandbox-health.http" -}}
ports:
  - name: http
    containerPort: 8080
    protocol: TCP
{{- with .livenessProbe }}
livenessProbe:
  httpGet:
    path: /healthz
    port: http
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .readinessProbe }}
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Of a pod: where it may run, how it finds names, and what its containers have in common. A component's values. */}}
{{- define "sandbox-health.scheduling" -}}
{{- with .podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
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
{{- with .dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How the pods of a workload are replaced: its updateStrategy. The API refuses numbers beside another type. */}}
{{- define "sandbox-health.strategy" -}}
type: {{ .type }}
{{- if eq .type "RollingUpdate" }}
rollingUpdate:
  {{- toYaml .rollingUpdate | nindent 2 }}
{{- end }}
{{- end -}}
