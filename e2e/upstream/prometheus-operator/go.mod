// Nothing of it is built: the module has the CRDs that the chart's PodMonitor and PrometheusRule are checked by.
module sandboxhealth.dev/e2e/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
