//! Names that several parts of the crate share: images, the Helm release. Imports nothing, so that everything may import it.

/// Our pause image, the sandbox image of a node.
pub const PAUSE: &str = "localhost/sandbox-health/pause:0.1.0";
/// The operator's image.
pub const SANDBOX_HEALTH: &str = "localhost/sandbox-health/sandbox-health:0.1.0";
/// The chart's value that selects it: the tag is the chart's own.
pub const IMAGE_VALUES: &str = "image.registry=localhost/sandbox-health";
/// A shell and small tools, for pods of tests.
pub const BUSYBOX: &str = "localhost/e2e/busybox:1";
/// A real server with several processes, for pods of tests and of the demo.
pub const NGINX: &str = "localhost/e2e/nginx:1";
/// A third-party pause image, which has no status.
pub const OTHER_PAUSE: &str = "localhost/e2e/other-pause:1";
/// A hostile pause image: it shows false statuses, and creates processes that are hard to observe.
pub const HOSTILE_PAUSE: &str = "localhost/e2e/hostile-pause:1";

/// The Helm release.
pub const RELEASE: &str = "sandbox-health";
/// The namespace that the chart is installed in.
pub const RELEASE_NAMESPACE: &str = "sandbox-health";
/// The controller's account, Deployment and Lease.
pub const CONTROLLER: &str = "sandbox-health-controller";
