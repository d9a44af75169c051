// Run and not installed: it reads the chart's dashboard by the types that Grafana generates from its schema.
module sandboxhealth.dev/e2e/grafana-dashboard

go 1.26.0

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
