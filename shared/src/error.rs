//! The one error that crosses wires: bus, agent protocol and REST all carry it.
//!
//! Modules have their own small error enums; where an error leaves a process it becomes an [`Error`]
//! with a stable [`Code`]. `message` is for the user; `detail` is for the operator and never leaves
//! through the public API to a tenant.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `Result` with the wire error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// What went wrong, as programs read it. Codes are never renamed or reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// A code that a newer peer sent and this version does not know; treated as `internal`.
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl Code {
            /// Every code that this version may send.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable text, as in the `code` field of a problem.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown => "unknown",
                }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                    Self::Unknown => 500,
                }
            }

            /// A short sentence that is the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                    Self::Unknown => "An unknown kind of error",
                }
            }
        }
    };
}

codes! {
    /// The request is malformed or breaks a rule that needs no look at the state.
    InvalidRequest = "invalid_request", 400, "The request is not valid";
    /// The token is missing, unknown or expired.
    Unauthenticated = "unauthenticated", 401, "A valid token is needed";
    /// The caller may not do this.
    Forbidden = "forbidden", 403, "This is not allowed";
    /// There is no such resource, or the caller may not know of it.
    NotFound = "not_found", 404, "There is no such resource";
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, "This method is not allowed here";
    /// The id exists already with other content.
    Conflict = "conflict", 409, "The resource exists with other content";
    /// The name is in use.
    NameTaken = "name_taken", 409, "The name is in use";
    /// The resource's state does not allow this.
    InvalidState = "invalid_state", 409, "The state of the resource does not allow this";
    /// Something else still uses the resource.
    InUse = "in_use", 409, "The resource is in use";
    /// The idempotency key was used for another request.
    IdempotencyMismatch = "idempotency_mismatch", 422, "The idempotency key belongs to another request";
    /// No host can take the VM.
    NoHostFits = "no_host_fits", 409, "No host can take this";
    /// The pool (addresses, ports, capacity) has nothing left.
    Exhausted = "exhausted", 409, "Nothing is left of what was asked for";
    /// A limit of the account would be exceeded.
    QuotaExceeded = "quota_exceeded", 403, "A quota would be exceeded";
    /// The body is larger than is allowed.
    TooLarge = "too_large", 413, "The request is too large";
    /// The body is not JSON.
    UnsupportedMediaType = "unsupported_media_type", 415, "This media type is not understood";
    /// Too many requests.
    RateLimited = "rate_limited", 429, "Too many requests";
    /// The deadline passed before the work was done.
    DeadlineExceeded = "deadline_exceeded", 504, "The deadline has passed";
    /// The work was cancelled by a user.
    Cancelled = "cancelled", 409, "The work was cancelled";
    /// The host does not answer.
    HostUnreachable = "host_unreachable", 503, "The host cannot be reached";
    /// The host answered that it could not do it.
    HostFailed = "host_failed", 502, "The host could not do it";
    /// The command carries an older generation than the host has seen.
    StaleGeneration = "stale_generation", 409, "A newer owner has taken over";
    /// The image is not acceptable (format, backing file, size).
    ImageRejected = "image_rejected", 422, "The image is not acceptable";
    /// The download's checksum differs.
    ChecksumMismatch = "checksum_mismatch", 422, "The checksum does not match";
    /// The image could not be downloaded.
    DownloadFailed = "download_failed", 502, "The download failed";
    /// A disk is full.
    NoSpace = "no_space", 507, "No space is left";
    /// A queue is full or the process is stopping; try again later.
    Unavailable = "unavailable", 503, "The service is not available now";
    /// The operator has switched the service off.
    ServiceDisabled = "service_disabled", 503, "The service is disabled";
    /// The bus does not know the message or nobody serves it.
    UnknownMessage = "unknown_message", 501, "Nobody understands this message";
    /// The controller that worked on it left the ring.
    OwnerLeft = "owner_left", 503, "The owning controller left";
    /// A defect, or a failure nobody foresaw.
    Internal = "internal", 500, "Something went wrong inside Kring";
}

impl Code {
    /// Whether the same request may succeed later without any change by the caller.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::OwnerLeft | Self::HostUnreachable | Self::RateLimited)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One field of a request that is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Path of the field in the body, such as `nics[0].network_id`.
    pub field: String,
    /// What is wrong with it and what to give instead.
    pub message: String,
}

/// An error as it crosses a wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Error {
    /// What programs read.
    pub code: Code,
    /// What the user reads: what happened and what to do.
    pub message: String,
    /// What the operator may read besides; not shown to tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why, from the nearest cause to the farthest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The fields that are not acceptable, for `invalid_request`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldError>,
}

impl Error {
    /// An error with this code and this sentence for the user.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, causes: Vec::new(), fields: Vec::new() }
    }

    /// `invalid_request` that names one field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (field.into(), message.into());
        let mut error = Self::new(Code::InvalidRequest, format!("{field}: {message}"));
        error.fields.push(FieldError { field, message });
        error
    }

    /// `not_found` for a noun and what it was looked up by.
    pub fn not_found(noun: &str, key: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("there is no {noun} {key}"))
    }

    /// `internal`, with what the operator should know.
    pub fn internal(detail: impl fmt::Display) -> Self {
        Self::new(
            Code::Internal,
            "something went wrong inside Kring; the operator finds it in the log by the request id",
        )
        .with_detail(detail.to_string())
    }

    /// Adds what only the operator may read.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Says what was being done, keeping this error as the cause.
    #[must_use]
    pub fn during(mut self, doing: impl fmt::Display) -> Self {
        self.causes.insert(0, std::mem::replace(&mut self.message, doing.to_string()));
        self
    }

    /// Adds the chain of a standard error's sources as causes.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// The message with its causes on one line, for logs and the command line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        for cause in &self.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        text
    }
}

/// The body of every error answer of the REST API (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A URI that names the kind: the code's section of the error page of this server.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words; the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time and what to do.
    pub detail: String,
    /// The stable code.
    pub code: Code,
    /// Why, from the nearest cause to the farthest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The fields that are not acceptable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The request's id, as in the log and in the `X-Request-Id` header.
    pub request_id: String,
}

impl Problem {
    /// The problem that tells of `error`.
    #[must_use]
    pub fn new(error: Error, request_id: String) -> Self {
        Self {
            kind: format!("/docs/errors#{}", error.code),
            title: error.code.title().to_string(),
            status: error.code.status(),
            detail: error.message,
            code: error.code,
            causes: error.causes,
            errors: error.fields,
            request_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
            assert!((400..600).contains(&code.status()));
        }
        assert_eq!(serde_json::from_str::<Code>("\"from_the_future\"").unwrap(), Code::Unknown);
    }

    #[test]
    fn a_context_keeps_the_cause() {
        let error = Error::new(Code::NoSpace, "the disk is full").during("could not create the volume");
        assert_eq!(error.chain(), "could not create the volume: the disk is full");
        assert_eq!(error.code, Code::NoSpace);
    }
}
