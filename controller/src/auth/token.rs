//! Secrets: how they are made and how they are kept. Only hashes are stored or travel on the bus.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What every bearer token begins with, so that it is recognised where it does not belong.
pub const PREFIX: &str = "kring_";

/// A new secret for a bearer token: 256 random bits.
#[must_use]
pub fn new_secret() -> String {
    format!("{PREFIX}{}", random())
}

/// A new secret for a join token, without the fingerprint: see [`join_token`].
#[must_use]
pub fn new_join_secret() -> String {
    random()
}

/// A one-time ticket: 192 random bits, safe in a path.
#[must_use]
pub fn new_ticket() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>())
}

/// The token that an agent joins with: the secret, and the fingerprint of the certificate authority
/// that the agent checks before it sends the secret.
#[must_use]
pub fn join_token(secret: &str, ca_fingerprint_hex: &str) -> String {
    format!("{secret}.{ca_fingerprint_hex}")
}

/// The secret in a join token that an agent sent; `None` when it has not the form of one.
#[must_use]
pub fn join_secret(token: &str) -> Option<&str> {
    let (secret, fingerprint) = token.trim().rsplit_once('.')?;
    let hex = fingerprint.len() == 64 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
    (hex && (16..=128).contains(&secret.len())).then_some(secret)
}

/// Hexadecimal SHA-256 of a secret, as it is stored and sent.
#[must_use]
pub fn sha256_hex(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn random() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_are_kept_as_hashes() {
        let (a, b) = (new_secret(), new_secret());
        assert!(a != b && a.starts_with(PREFIX) && a.len() == PREFIX.len() + 43);
        assert_eq!(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_join_token_gives_its_secret_back() {
        let secret = new_join_secret();
        let token = join_token(&secret, &"ab".repeat(32));
        assert_eq!(join_secret(&token), Some(secret.as_str()));
        for bad in ["", ".", "secret", "a.b", &token[..token.len() - 1], &format!("x.{}", "ab".repeat(32))] {
            assert_eq!(join_secret(bad), None, "{bad}");
        }
    }
}
