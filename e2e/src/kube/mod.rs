//! Operations of tests and of the demo on a running cluster: pods, SandboxHealth objects, Events, the chart's workloads, the audit log,
//! and the processes of sandboxes on the machine.

pub mod audit_log;
pub mod causes;
pub mod events;
pub mod metrics;
pub mod objects;
pub mod pods;
pub mod processes;
pub mod sandbox_health;
mod slow_api;
pub mod workloads;

pub use events::{events, events_of, restart_events_by_pod, restart_number, wait_for_restarts};
pub use metrics::{
    agent_metrics, controller_exposes, http_get, http_script, read_errors, wait_for_controller_metric,
};
pub use objects::object_names;
pub use pods::{
    Member, container_restarts, create, create_all, create_fleet, create_healthy, delete, delete_and_wait,
    delete_fleet, leave_zombies, pod, pod_object, shell, uid_of, wait_for_container_restarts,
};
pub use processes::{kernel_is_at_least, kill_pause, on_node, pause_pid, pause_pid_in_cgroup, pid_in_cgroup};
pub use sandbox_health::{
    apply_status, as_account, has_sandbox_health, object_uid, refused_edit, sandbox_health, sandbox_healths,
    wait_for_health, wait_for_zombies, wait_until_object_deleted, zombies_of,
};
pub use slow_api::with_slow_api_server;
pub use workloads::{
    in_release, install_chart, kill_in_pod, pods_of, restart, upgrade_chart, wait_for_rollout,
    with_sandbox_image, with_values, without_agents, without_controllers,
};
