//! `[api]`: the gateway.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use shared::units::Bytes;

use super::area::{loopback_or_none, names, positive, size};

/// `[api]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Address and port of the API (HTTPS).
    pub listen: SocketAddr,
    /// Loopback address and port of the API without TLS.
    #[serde(deserialize_with = "loopback_or_none")]
    pub plain_listen: Option<SocketAddr>,
    /// Names and addresses for the controller's certificate.
    #[serde(deserialize_with = "names")]
    pub names: Vec<String>,
    /// URLs by which agents reach this controller.
    pub advertise: Vec<String>,
    /// Open connections; more wait in the kernel.
    #[serde(deserialize_with = "positive")]
    pub max_connections: usize,
    /// TLS handshakes at a time.
    #[serde(deserialize_with = "positive")]
    pub max_handshakes: usize,
    /// How long a TLS handshake may take, in seconds.
    #[serde(deserialize_with = "positive")]
    pub handshake_timeout_s: usize,
    /// How long the head of a request may take, in seconds.
    #[serde(deserialize_with = "positive")]
    pub header_timeout_s: usize,
    /// Largest head of a request, in bytes; at least 8192.
    #[serde(deserialize_with = "positive")]
    pub max_header_bytes: usize,
    /// Largest JSON body.
    #[serde(deserialize_with = "size")]
    pub max_body: Bytes,
    /// Largest upload of an image.
    #[serde(deserialize_with = "size")]
    pub max_upload: Bytes,
    /// How long an upload may send nothing, in seconds.
    #[serde(deserialize_with = "positive")]
    pub upload_stall_s: usize,
    /// Requests that are worked on at a time.
    #[serde(deserialize_with = "positive")]
    pub max_in_flight: usize,
    /// Event streams and consoles that are open at a time.
    #[serde(deserialize_with = "positive")]
    pub max_streams: usize,
    /// The same for one account.
    #[serde(deserialize_with = "positive")]
    pub max_streams_per_account: usize,
    /// How long a request may take when it does not say so, in seconds.
    #[serde(deserialize_with = "positive")]
    pub timeout_s: usize,
    /// Longest time that a request may ask for, in seconds.
    #[serde(deserialize_with = "positive")]
    pub max_timeout_s: usize,
    /// Requests per second of an ordinary account; 0: no limit.
    pub rate_per_s: u32,
    /// How many of them may come at once.
    pub rate_burst: u32,
    /// Requests per second of an admin account; 0: no limit.
    pub admin_rate_per_s: u32,
    /// How many of them may come at once.
    pub admin_rate_burst: u32,
    /// Wrong tokens per minute from one address; 0: no limit.
    pub auth_failures_per_min: u32,
    /// How long an accepted token is believed, in milliseconds.
    pub token_cache_ms: u64,
    /// How long requests may go on when the controller stops, in seconds.
    pub drain_s: u64,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            plain_listen: None,
            names: Vec::new(),
            advertise: Vec::new(),
            max_connections: 20_000,
            max_handshakes: 512,
            handshake_timeout_s: 10,
            header_timeout_s: 60,
            max_header_bytes: 32_768,
            max_body: Bytes::mib(1),
            max_upload: Bytes::gib(200),
            upload_stall_s: 60,
            max_in_flight: 16_384,
            max_streams: 2000,
            max_streams_per_account: 200,
            timeout_s: 30,
            max_timeout_s: 300,
            rate_per_s: 500,
            rate_burst: 1000,
            admin_rate_per_s: 0,
            admin_rate_burst: 0,
            auth_failures_per_min: 60,
            token_cache_ms: 3000,
            drain_s: 20,
        }
    }
}

impl ApiConfig {
    /// How long a TLS handshake may take.
    #[must_use]
    pub const fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_s as u64)
    }
    /// How long the head of a request may take.
    #[must_use]
    pub const fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout_s as u64)
    }
    /// How long an upload may send nothing.
    #[must_use]
    pub const fn upload_stall(&self) -> Duration {
        Duration::from_secs(self.upload_stall_s as u64)
    }
    /// How long a request may take when it does not say so.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s as u64)
    }
    /// Longest time that a request may ask for.
    #[must_use]
    pub const fn max_timeout(&self) -> Duration {
        Duration::from_secs(self.max_timeout_s as u64)
    }
    /// How long an accepted token is believed.
    #[must_use]
    pub const fn token_cache(&self) -> Duration {
        Duration::from_millis(self.token_cache_ms)
    }
    /// How long requests may go on when the controller stops.
    #[must_use]
    pub const fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }
    /// Largest JSON body, in bytes.
    #[must_use]
    pub fn max_body_bytes(&self) -> usize {
        usize::try_from(self.max_body.0).unwrap_or(usize::MAX)
    }
}
