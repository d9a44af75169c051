{{/* A list of the root and labels of the user's. The chart's own win. */}}
{{- define "sandbox-health.monitoringLabels" -}}
{{- merge (include "sandbox-health.labels" (list (index . 0) "monitoring") | fromYaml) (index . 1 | default dict) | toYaml -}}
{{- end -}}

{{/* The endpoint of a PodMonitor or a ServiceMonitor: its values. */}}
{{- define "sandbox-health.endpoint" -}}
- port: http
  path: /metrics
  {{- /* Series of pods have the pods' labels, and not those of the agent that shows them. */}}
  honorLabels: true
  {{- with .interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  relabelings:
    - action: replace
      sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: node
    {{- with .relabelings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* The expression of an alert or a panel with a PID limit in the place of the kubelet's series. */}}
{{- define "sandbox-health.withPidsLimit" -}}
{{- regexReplaceAll `/ on \([a-z_, ]+\) group_left \(\)\s+max by \([a-z_, ]+\) \(container_threads_max\{[^}]*\} > 0\)` (index . 0) (printf "/ %d" (int64 (index . 1))) -}}
{{- end -}}

{{/* The kubelet's series, which keep their labels, as series that match those of a Prometheus without honorLabels. Of the text of an
expression and the quote in it. */}}
{{- define "sandbox-health.exportPidsLimit" -}}
{{- $quote := index . 1 -}}
{{- $rename := printf `label_replace(label_replace(${3}, %[1]sexported_namespace%[1]s, %[1]s$$1%[1]s, %[1]snamespace%[1]s, %[1]s(.+)%[1]s), %[1]sexported_pod%[1]s, %[1]s$$1%[1]s, %[1]spod%[1]s, %[1]s(.+)%[1]s)` $quote -}}
{{- regexReplaceAll `on \(([a-z, ]*)namespace, pod\) group_left \(\)(\s+)max by \([a-z_, ]+\) \((container_threads_max\{[^}]*\} > 0)\)` (index . 0) (printf "on (${1}exported_namespace, exported_pod) group_left ()${2}max by (${1}exported_namespace, exported_pod) (%s)" $rename) -}}
{{- end -}}

{{/* Changes an alert for a Prometheus without honorLabels. Where a series has labels of a pod or a node that it is about, these are
renamed; the agent's own requests keep theirs. */}}
{{- define "sandbox-health.exportLabels" -}}
{{- $rule := . -}}
{{- $labels := list -}}
{{- if contains "by (namespace, pod, node) " .expr -}}
{{- if not (hasPrefix "count by (node)" .expr) -}}
{{- $labels = list "namespace" "pod" -}}
{{- end -}}
{{- $_ := set . "expr" (replace "by (namespace, pod, node) " "by (exported_namespace, exported_pod, node) " .expr) -}}
{{- $_ := set . "expr" (include "sandbox-health.exportPidsLimit" (list .expr "\"")) -}}
{{- else if contains "by (node) (max_over_time(sandboxhealth_" .expr -}}
{{- $labels = list "node" -}}
{{- $_ := set . "expr" (replace "by (node) " "by (exported_node) " .expr) -}}
{{- end -}}
{{- range $label := $labels -}}
{{- range $key, $text := $rule.annotations -}}
{{- $_ := set $rule.annotations $key (replace (printf "$labels.%s" $label) (printf "$labels.exported_%s" $label) $text) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The dashboard for such a Prometheus. */}}
{{- define "sandbox-health.exportedDashboard" -}}
{{- $text := include "sandbox-health.exportPidsLimit" (list . `\"`) -}}
{{- $text = regexReplaceAll `(pod_sandbox_[a-z_|]+(?:\\")?[{,] ?cluster=~\\"\$cluster\\", )namespace=` $text "${1}exported_namespace=" -}}
{{- $text = regexReplaceAll `(exported_namespace=~\\"\$namespace\\", )pod=` $text "${1}exported_pod=" -}}
{{- $text = regexReplaceAll `(by|on) \(cluster, namespace(, pod)?` $text "${1} (cluster, exported_namespace${2}" -}}
{{- $text = replace `by (namespace)` `by (exported_namespace)` $text -}}
{{- $text = replace `(cluster, exported_namespace, pod` `(cluster, exported_namespace, exported_pod` $text -}}
{{- $text = regexReplaceAll `(label_values\(.*\}, )(namespace|pod)\)"` $text `${1}exported_${2})"` -}}
{{- $text = replace `{{namespace}}` `{{exported_namespace}}` $text -}}
{{- regexReplaceAll `"(namespace|pod)": ([0-9]|"Namespace"|"Pod")` $text `"exported_${1}": ${2}` -}}
{{- end -}}
