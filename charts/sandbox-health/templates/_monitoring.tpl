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

{{/* Changes an alert for a Prometheus without honorLabels. Where a series has labels of a pod or a node that it is about, these are
renamed; the agent's own requests keep theirs. */}}
{{- define "sandbox-health.exportLabels" -}}
{{- $rule := . -}}
{{- $labels := list -}}
{{- if contains "by (namespace, pod, node) " .expr -}}
{{- $labels = list "namespace" "pod" -}}
{{- $_ := set . "expr" (replace "by (namespace, pod, node) " "by (exported_namespace, exported_pod, node) " .expr) -}}
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

{{/* The dashboard for such a Prometheus. The kubelet's series (container_*) keep their labels. */}}
{{- define "sandbox-health.exportedDashboard" -}}
{{- $text := regexReplaceAll `(pod_sandbox_[a-z_]+\{)namespace=` . "${1}exported_namespace=" -}}
{{- $text = regexReplaceAll `(\{exported_namespace=~\\"\$namespace\\", )pod=` $text "${1}exported_pod=" -}}
{{- $text = replace `by (namespace, pod` `by (exported_namespace, exported_pod` $text -}}
{{- $text = replace `on (namespace, pod` `on (exported_namespace, exported_pod` $text -}}
{{- $text = replace `by (namespace)` `by (exported_namespace)` $text -}}
{{- $text = replace `pod_sandbox_readable\", namespace=` `pod_sandbox_readable\", exported_namespace=` $text -}}
{{- $text = regexReplaceAll `(label_values\(.*\}, )(namespace|pod)\)"` $text `${1}exported_${2})"` -}}
{{- $text = replace `{{namespace}}` `{{exported_namespace}}` $text -}}
{{- regexReplaceAll `"(namespace|pod)": ([01]|"Namespace"|"Pod")` $text `"exported_${1}": ${2}` -}}
{{- end -}}
