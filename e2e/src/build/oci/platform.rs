//! The platforms of our images, and what each is called by those who have a say in it.

use std::fmt;

use clap::ValueEnum;

/// What a node can be, as OCI images name it.
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
    /// Every one that there is a pause image for.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Go's name for the architecture, which OCI uses, and Debian, too.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The target that Rust compiles for.
    #[must_use]
    pub const fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The platform that this program runs on; `None` where there is no image for it.
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
