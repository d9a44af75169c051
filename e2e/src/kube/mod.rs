//! What tests and the demo do with a cluster that runs: pods, SandboxHealth objects, Events, the chart's workloads, and the processes
//! of sandboxes on the machine.

pub mod events;
pub mod metrics;
pub mod objects;
pub mod pods;
pub mod processes;
pub mod sandbox_health;
pub mod workloads;

pub use events::{events_by_pod, events_of, number_of, told_of};
pub use metrics::{agent_metrics, controller_shows, http_get, read_errors};
pub use objects::object_names;
pub use pods::{
    Member, container_restarts, containers_restarted, create, create_fleet, create_pods, delete,
    delete_fleet, never_waits, pod, shell, uid_of,
};
pub use processes::{
    kernel_is_at_least, kill_pause, on_node, pause_in_cgroup_of, pause_of, process_in_cgroup_of,
};
pub use sandbox_health::{edit_restarts, health_of, sandbox_health, unwatched_row_goes, zombies_of};
pub use workloads::{
    in_release, install_chart, kill_in_pod, pods_of, restart, rolled_out, with_sandbox_image, with_values,
    without_agents, without_controllers,
};
