//! Session tokens of the metadata service (IMDSv2). They are kept nowhere: a token carries its own
//! end and a hash with a key that only this process knows, so it dies with the agent; guests ask
//! for a new one when theirs is refused.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};
use shared::time::Timestamp;

/// Issues and checks tokens.
#[derive(Debug)]
pub struct Tokens {
    key: [u8; 32],
}

impl Default for Tokens {
    fn default() -> Self {
        Self { key: rand::random() }
    }
}

impl Tokens {
    /// A token for a guest, good for `ttl` seconds.
    #[must_use]
    pub fn issue(&self, guest: Ipv4Addr, ttl: u32, now: Timestamp) -> String {
        self.token(guest, now.plus_ms(i64::from(ttl) * 1000).ms())
    }

    /// Whether a token was issued to this guest and is still good.
    #[must_use]
    pub fn is_valid(&self, token: &[u8], guest: Ipv4Addr, now: Timestamp) -> bool {
        let end = token.split(|b| *b == b'.').next().and_then(|t| std::str::from_utf8(t).ok()?.parse::<i64>().ok());
        let Some(end) = end.filter(|end| *end > now.ms()) else { return false };
        let right = self.token(guest, end);
        // In constant time: how much of a guess was right must not show.
        right.len() == token.len() && right.bytes().zip(token).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }

    fn token(&self, guest: Ipv4Addr, end: i64) -> String {
        // The key before and behind the message, each with its own length, leaves no room for extension.
        let hash = Sha256::new().chain_update(self.key).chain_update(guest.octets()).chain_update(end.to_be_bytes());
        let hash = Sha256::new().chain_update(self.key).chain_update(hash.finalize()).finalize();
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        format!("{end}.{hex}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_guest_and_its_time_only() {
        let (tokens, other) = (Tokens::default(), Tokens::default());
        let (guest, now) = (Ipv4Addr::new(10, 0, 0, 5), Timestamp(1_000_000));
        let token = tokens.issue(guest, 60, now);
        assert!(tokens.is_valid(token.as_bytes(), guest, now));
        assert!(!tokens.is_valid(token.as_bytes(), guest, now.plus_ms(60_000)));
        assert!(!tokens.is_valid(token.as_bytes(), Ipv4Addr::new(10, 0, 0, 6), now));
        assert!(!other.is_valid(token.as_bytes(), guest, now));
        for forged in ["", ".", "99999999999999.", "x.y", &token[..token.len() - 1], &format!("9{token}")] {
            assert!(!tokens.is_valid(forged.as_bytes(), guest, now), "{forged}");
        }
    }
}
