//! The platforms of our images, and their names in OCI, Debian and Rust.

use std::fmt;

use clap::ValueEnum;

/// The platform of a node, as OCI images name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Platform {
    /// x86_64
    #[value(name = "linux/amd64")]
    Amd64,
    /// aarch64
    #[value(name = "linux/arm64")]
    Arm64,
}

impl Platform {
    /// All platforms that have a pause image.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Go's name for the architecture, which OCI and Debian use as well.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's target triple.
    #[must_use]
    pub const fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The platform of this machine; `None` if there is no image for it.
    #[must_use]
    pub fn host() -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.triple().starts_with(std::env::consts::ARCH))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "linux/{}", self.architecture())
    }
}
