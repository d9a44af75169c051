//! The images that can be built here, by name. [`super::images`] builds them.

use crate::names::{BUSYBOX, HOSTILE_PAUSE, NGINX, OTHER_PAUSE, PAUSE, SANDBOX_HEALTH};

/// An image that can be built here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// [`PAUSE`]
    Pause,
    /// [`SANDBOX_HEALTH`]
    SandboxHealth,
    /// [`BUSYBOX`]
    Busybox,
    /// [`NGINX`]
    Nginx,
    /// [`OTHER_PAUSE`]
    OtherPause,
    /// [`HOSTILE_PAUSE`]
    HostilePause,
}

impl Image {
    /// All images, in the order in which building them is cheap.
    pub const ALL: [Self; 6] =
        [Self::Pause, Self::OtherPause, Self::HostilePause, Self::Busybox, Self::Nginx, Self::SandboxHealth];

    /// The name by which pods refer to it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => PAUSE,
            Self::SandboxHealth => SANDBOX_HEALTH,
            Self::Busybox => BUSYBOX,
            Self::Nginx => NGINX,
            Self::OtherPause => OTHER_PAUSE,
            Self::HostilePause => HOSTILE_PAUSE,
        }
    }

    /// The last part of the name, without the version.
    pub(crate) fn short(self) -> &'static str {
        let last = self.name().rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default()
    }

    /// Path from the root of the project; `None` for the image that needs no buildah.
    pub(crate) const fn containerfile(self) -> Option<&'static str> {
        match self {
            Self::Pause => None,
            Self::SandboxHealth => Some("controller/Containerfile"),
            Self::Busybox => Some("e2e/images/busybox/Containerfile"),
            Self::Nginx => Some("e2e/images/nginx/Containerfile"),
            Self::OtherPause => Some("e2e/images/other-pause/Containerfile"),
            Self::HostilePause => Some("e2e/images/hostile-pause/Containerfile"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_name_is_last_part_of_name() {
        assert_eq!(Image::Pause.short(), "pause");
        assert_eq!(Image::OtherPause.short(), "other-pause");
    }
}
