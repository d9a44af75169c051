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

{{- define "sandbox-health.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
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

{{/* The annotations of an object, or nothing: a list of the root and the object's own, which win. */}}
{{- define "sandbox-health.annotations" -}}
{{- $root := index . 0 -}}
{{- with merge (deepCopy (index . 1 | default dict)) ($root.Values.commonAnnotations | default dict) -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* The labels of a component's pods. The chart's own win: a user's label must not break the selector. The chart's version is left out:
a newer chart of the same program restarts no pod. */}}
{{- define "sandbox-health.podLabels" -}}
{{- $root := index . 0 -}}
{{- $own := (get $root.Values (index . 1) | default dict).podLabels | default dict -}}
{{- merge (omit (include "sandbox-health.ownLabels" . | fromYaml) "helm.sh/chart") $own ($root.Values.commonLabels | default dict) | toYaml -}}
{{- end -}}

{{/* The annotations of a component's pods, or nothing: a list of the root and the component. A user's win. Those of a scrape are
left out where a PodMonitor or a ServiceMonitor has the pods scraped: twice would double each sum. */}}
{{- define "sandbox-health.podAnnotations" -}}
{{- $root := index . 0 -}}
{{- $annotations := deepCopy (index $root.Values (index . 1) "podAnnotations" | default dict) -}}
{{- if and $root.Values.metrics.annotations (not (or $root.Values.podMonitor.enabled $root.Values.serviceMonitor.enabled)) -}}
{{- $port := int64 $root.Values.metrics.port | toString -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/port" $port "prometheus.io/path" "/metrics" -}}
{{- $annotations = merge $annotations $scrape -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The registry of the image; a parent chart's comes first. */}}
{{- define "sandbox-health.registry" -}}
{{- ((.Values.global).imageRegistry) | default .Values.image.registry | default "" | trimSuffix "/" -}}
{{- end -}}

{{/* The image: registry/repository:tag@digest. */}}
{{- define "sandbox-health.image" -}}
{{- with include "sandbox-health.registry" . }}{{ . }}/{{ end -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The registry of the pause image. */}}
{{- define "sandbox-health.pauseRegistry" -}}
{{- ((.Values.global).imageRegistry) | default .Values.pause.image.registry | default .Values.image.registry | default "" | trimSuffix "/" -}}
{{- end -}}

{{/* The pause image: registry/repository, and :tag or @digest. With both, containerd would store it under another name. */}}
{{- define "sandbox-health.pauseImage" -}}
{{- $image := .Values.pause.image -}}
{{- printf "%s/%s" (include "sandbox-health.pauseRegistry" .) $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* A container of the pause image: a list of the root, its name and its securityContext. */}}
{{- define "sandbox-health.pauseContainer" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
image: {{ include "sandbox-health.pauseImage" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
resources:
  {{- toYaml $root.Values.pause.preload.resources | nindent 2 }}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  {{- index . 2 | nindent 2 }}
{{- end -}}

{{/* Names of the installer's Leases, as many as pauseInstaller.concurrency may be: one that is lowered must not keep the holder of a
higher Lease from ending its switch. */}}
{{- define "sandbox-health.pauseLeases" -}}
{{- range until 20 }}
- {{ include "sandbox-health.fullname" $ }}-pause-installer-{{ . }}
{{- end }}
{{- end }}

{{/* The secrets for the registry, or nothing. */}}
{{- define "sandbox-health.imagePullSecrets" -}}
{{- with concat ((.Values.global).imagePullSecrets | default list) (.Values.imagePullSecrets | default list) | uniq -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
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
  namespace: {{ include "sandbox-health.namespace" $root }}
  labels:
    {{- include "sandbox-health.labels" . | nindent 4 }}
  {{- with include "sandbox-health.annotations" (list $root (index $root.Values (index . 1) "serviceAccount").annotations) }}
  {{- . | nindent 2 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{/* The value watch.pods as a flag has it. */}}
{{- define "sandbox-health.watchPods" -}}
{{- get (dict "SharedPIDNamespace" "shared-pid-namespace" "All" "all") .Values.watch.pods -}}
{{- end -}}

{{/* The namespaces of watch.namespaces as flags, or nothing. The release's own is one of them, for the pod of `helm test`. */}}
{{- define "sandbox-health.watchNamespaces" -}}
{{- with .Values.watch.namespaces }}
{{- range append . (include "sandbox-health.namespace" $) | uniq }}
- --watch-namespace={{ . }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port and the probes of a component: a list of the root and the component. Here and below, what the API server would add is
written out, so that a GitOps tool finds no difference. */}}
{{- define "sandbox-health.http" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
ports:
  - name: http
    containerPort: {{ int64 $root.Values.metrics.port }}
    protocol: TCP
{{- range $probe, $path := dict "livenessProbe" "/healthz" "readinessProbe" "/readyz" }}
{{- with get $values $probe }}
{{ $probe }}:
  httpGet:
    path: {{ $path }}
    port: http
    scheme: HTTP
  successThreshold: 1
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* The securityContext of a component's container: a list of the root and the component. */}}
{{- define "sandbox-health.securityContext" -}}
{{- $root := index . 0 -}}
{{- $context := (index $root.Values (index . 1)).securityContext -}}
{{- if $root.Values.openshift.scc.create -}}
{{- $context = omit $context "runAsUser" "runAsGroup" -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Of a pod: where it may run and how it finds names. A component's values. */}}
{{- define "sandbox-health.scheduling" -}}
securityContext:
{{- with .podSecurityContext }}
  {{- toYaml . | nindent 2 }}
{{- else }} {}
{{- end }}
schedulerName: default-scheduler
{{- if not (kindIs "invalid" .terminationGracePeriodSeconds) }}
terminationGracePeriodSeconds: {{ int64 .terminationGracePeriodSeconds }}
{{- end }}
dnsPolicy: {{ .dnsPolicy | default "ClusterFirst" }}
{{- with .dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq (toString .hostUsers) "false" }}
hostUsers: false
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
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
{{- end -}}

{{/* Of a workload's pod template: a list of the root and the component. */}}
{{- define "sandbox-health.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "sandbox-health.account" . }}
serviceAccount: {{ include "sandbox-health.account" . }}
automountServiceAccountToken: true
enableServiceLinks: false
restartPolicy: Always
{{- with include "sandbox-health.imagePullSecrets" $root }}
{{ . }}
{{- end }}
{{ include "sandbox-health.scheduling" $values }}
{{- with $values.extraVolumes }}
volumes:
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
