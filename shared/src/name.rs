//! Names that people give to resources.
//!
//! A name ends up in file names, XML, DNS, shells and tables, so what it may hold is decided here
//! once, and everything below may rely on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in characters.
pub const MAX_NAME: usize = 63;

/// A resource's name: 1 to 63 letters, digits, `-`, `_` or `.` (ASCII), starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "web-1")]
pub struct Name(String);

/// A name that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a valid name: use 1 to 63 ASCII letters, digits, '-', '_' or '.', starting with a letter or digit"
)]
pub struct InvalidName(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a host name: lower case, with `_` and `.` made `-`, without a `-` at the end.
    #[must_use]
    pub fn to_hostname(&self) -> String {
        let host = self.0.to_ascii_lowercase().replace(['_', '.'], "-");
        host.trim_end_matches('-').to_string()
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let ok = (1..=MAX_NAME).contains(&s.len())
            && s.bytes().all(allowed)
            && s.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if ok { Ok(Self(s.to_string())) } else { Err(InvalidName(s.chars().take(80).collect())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(64);
        for bad in ["", "../x", "a/b", "a b", "<a>", "a'b", "$(id)", "名字", "-a", ".a", "a\nb", "a\0", long.as_str()]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ordinary_names_are_taken_and_become_host_names() {
        for (name, host) in [("web-1", "web-1"), ("DB_main.2", "db-main-2"), ("x-", "x")] {
            assert_eq!(name.parse::<Name>().unwrap().to_hostname(), host);
        }
    }
}
