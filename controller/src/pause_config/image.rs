//! The name of a pause image as a runtime's configuration needs it: complete, with one version.

use std::fmt;
use std::str::FromStr;

/// The longest name that registries and containerd accept.
const MAX_LENGTH: usize = 255;
const MAX_TAG: usize = 128;

/// A complete image name: registry, repository, and a tag or a digest. It contains no character that TOML, YAML or a URL would
/// have to quote inside double quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    repository: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    Tag(String),
    Digest(String),
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("a tag or a digest is required: registry.example/pause:0.1.0 or registry.example/pause@sha256:…")]
    NoVersion,
    // containerd drops the tag from the name that it stores, so the configured name would match no image and pin none.
    #[error(
        "a tag or a digest, not both: containerd pins an image only by the name that it stores, which has one of them"
    )]
    TagAndDigest,
    #[error(
        "the registry is required, as a host with a dot or a port, or localhost: registry.example/pause:0.1.0"
    )]
    NoRegistry,
    #[error("{0:?} is not a registry's host, with a port if it has one")]
    Registry(String),
    #[error("{0:?} is not a repository: lower-case letters and digits, and between them . _ - and /")]
    Repository(String),
    #[error(
        "{0:?} is not a tag: letters, digits, and after the first character also . _ -; 128 characters at most"
    )]
    Tag(String),
    #[error("{0:?} is not a digest: sha256: and 64 hexadecimal digits in lower case")]
    Digest(String),
    #[error("longer than 255 characters")]
    TooLong,
}

impl Image {
    /// The name without tag and digest.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless a digest is the version.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(formatter, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(formatter, "{}@{digest}", self.repository),
        }
    }
}

impl FromStr for Image {
    type Err = ImageError;

    fn from_str(name: &str) -> Result<Self, ImageError> {
        if name.len() > MAX_LENGTH {
            return Err(ImageError::TooLong);
        }
        let (name, digest) = match name.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (name, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (name, None),
        };
        let version = match (tag, digest) {
            (None, None) => return Err(ImageError::NoVersion),
            (Some(_), Some(_)) => return Err(ImageError::TagAndDigest),
            (Some(tag), None) if is_tag(tag) => Version::Tag(tag.to_owned()),
            (Some(tag), None) => return Err(ImageError::Tag(tag.to_owned())),
            (None, Some(digest)) if is_digest(digest) => Version::Digest(digest.to_owned()),
            (None, Some(digest)) => return Err(ImageError::Digest(digest.to_owned())),
        };
        let (registry, path) = repository.split_once('/').ok_or(ImageError::NoRegistry)?;
        if registry != "localhost" && !registry.contains(['.', ':']) {
            return Err(ImageError::NoRegistry);
        }
        if !is_registry(registry) {
            return Err(ImageError::Registry(registry.to_owned()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ImageError::Repository(path.to_owned()));
        }
        Ok(Self { repository: repository.to_owned(), version })
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|it| it.is_ascii_alphanumeric() || it == '-')
    };
    host.split('.').all(is_label) && port.parse::<u16>().is_ok()
}

fn is_path_component(component: &str) -> bool {
    let is_inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    component.starts_with(is_inner)
        && component.ends_with(is_inner)
        && component.chars().all(|it| is_inner(it) || matches!(it, '.' | '_' | '-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |it: char| it.is_ascii_alphanumeric() || it == '_';
    tag.len() <= MAX_TAG
        && tag.starts_with(is_word)
        && tag.chars().all(|it| is_word(it) || matches!(it, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.chars().all(|it| it.is_ascii_digit() || matches!(it, 'a'..='f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Result<Image, ImageError> {
        name.parse()
    }

    #[test]
    fn complete_name_is_kept_as_it_is() {
        let digest = format!("registry.example/team/pause@sha256:{}", "0a".repeat(32));
        for name in [
            "registry.example/pause:0.1.0",
            "registry.example:5000/team/pa_use.x:v1_2-3",
            "localhost/pause:1",
            "10.0.0.1:5000/pause:latest",
            &digest,
        ] {
            assert_eq!(parse(name).unwrap().to_string(), name);
        }
        assert_eq!(parse(&digest).unwrap().tag(), None);
        let image = parse("registry.example:5000/pause:1").unwrap();
        assert_eq!((image.repository(), image.tag()), ("registry.example:5000/pause", Some("1")));
    }

    #[test]
    fn incomplete_name_is_refused_with_its_reason() {
        let both = format!("registry.example/pause:1@sha256:{}", "0".repeat(64));
        for (name, error) in [
            ("registry.example/pause", ImageError::NoVersion),
            ("registry.example:5000/pause", ImageError::NoVersion),
            ("", ImageError::NoVersion),
            (&both, ImageError::TagAndDigest),
            ("pause:1", ImageError::NoRegistry),
            ("team/pause:1", ImageError::NoRegistry),
            ("-x.example/pause:1", ImageError::Registry("-x.example".to_owned())),
            ("x:port/pause:1", ImageError::Registry("x:port".to_owned())),
            ("registry.example/Pause:1", ImageError::Repository("Pause".to_owned())),
            ("registry.example//pause:1", ImageError::Repository("/pause".to_owned())),
            ("registry.example/pause:", ImageError::Tag(String::new())),
            ("registry.example/pause:a b", ImageError::Tag("a b".to_owned())),
            ("registry.example/pause:\"", ImageError::Tag("\"".to_owned())),
            ("registry.example/pause@sha256:0", ImageError::Digest("sha256:0".to_owned())),
            ("registry.example/pause@", ImageError::Digest(String::new())),
        ] {
            assert_eq!(parse(name), Err(error), "{name}");
        }
        let long = format!("registry.example/{}:1", "a".repeat(MAX_LENGTH));
        assert_eq!(parse(&long), Err(ImageError::TooLong));
    }
}
