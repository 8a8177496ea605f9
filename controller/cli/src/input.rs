//! Reading what users write: durations, and the texts of files given on the command line.

use std::path::Path;
use std::time::Duration;

use crate::error::{CliError, Result};

/// Reads `90`, `90s`, `5m`, `2h` or `7d`.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let bad = || format!("\"{text}\" is not a duration: give a number with s, m, h or d, such as 90s or 5m");
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match text[digits..].trim() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    number.checked_mul(unit).filter(|s| *s <= 366 * 86_400).map(Duration::from_secs).ok_or_else(bad)
}

/// Writes a duration as [`duration`] reads it.
pub fn duration_text(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 if s.is_multiple_of(60) => format!("{}m", s / 60),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        _ if s.is_multiple_of(3600) => format!("{}h", s / 3600),
        _ => format!("{}h{}m", s / 3600, s % 3600 / 60),
    }
}

/// The text of a file that was named on the command line; `-` is standard input.
pub fn file_text(path: &Path, what: &str) -> Result<String> {
    let read =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    read.map_err(|e| CliError::Usage(format!("cannot read the {what} {}: {e}", path.display())))
}

/// Public ssh keys: a key itself, or a file with one key on a line.
pub fn ssh_keys(given: &[String]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for item in given {
        let text = if looks_like_key(item) { item.clone() } else { file_text(Path::new(item), "ssh key file")? };
        if text.contains("PRIVATE KEY") {
            return Err(CliError::Usage(format!("{item} is a private key: give the public one (the .pub file)")));
        }
        let before = keys.len();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_string));
        if keys.len() == before {
            return Err(CliError::Usage(format!("there is no ssh key in {item}")));
        }
    }
    Ok(keys)
}

fn looks_like_key(text: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|p| text.starts_with(p)) && text.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, s) in [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(s)));
        }
        for bad in ["", "m", "-1", "1.5h", "5 weeks", "99999999999999999999", "400d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration_text(Duration::from_secs(90)), "1m30s");
        assert_eq!(duration_text(Duration::from_secs(3600)), "1h");
    }

    #[test]
    fn keys_are_taken_as_text_or_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id.pub");
        std::fs::write(&file, "# mine\nssh-ed25519 AAAA me\n\n").unwrap();
        let keys = ssh_keys(&["ssh-rsa BBBB you".into(), file.display().to_string()]).unwrap();
        assert_eq!(keys, ["ssh-rsa BBBB you", "ssh-ed25519 AAAA me"]);
    }

    #[test]
    fn a_private_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id");
        std::fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        let error = ssh_keys(&[file.display().to_string()]).unwrap_err().to_string();
        assert!(error.contains("private key"), "{error}");
    }
}
