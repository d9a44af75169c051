//! The monitoring that users have besides kubectl: a Prometheus that scrapes a node, and the chart's Grafana dashboard.

pub mod dashboard;
pub mod prometheus;
