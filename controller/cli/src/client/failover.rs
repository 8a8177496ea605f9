//! Going on at another address when a controller does not answer, and telling so.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use reqwest::Url;

use super::Client;
use crate::error::CliError;
use crate::output::{note, plain};

/// An address that did not answer.
pub(super) struct Away {
    url: Url,
    causes: Vec<String>,
}

impl Client {
    /// How many addresses there are.
    pub fn addresses(&self) -> usize {
        self.urls.len()
    }

    /// Takes note that the address in use answered.
    pub(super) fn answered(&self) {
        let url = self.url();
        self.away.lock().unwrap_or_else(PoisonError::into_inner).retain(|away| away.url != *url);
    }

    /// Goes on at the next address because of `error`, and tells people once. False when there is no
    /// other.
    pub(super) fn next_address(&self, error: &CliError) -> bool {
        let before = self.url().clone();
        let causes = match error {
            CliError::Unreachable { tried, .. } => tried.iter().flat_map(|(_, causes)| causes.clone()).collect(),
            other => vec![other.to_string()],
        };
        let told = {
            let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
            let told = away.iter().any(|away| away.url == before);
            away.retain(|away| away.url != before);
            away.push(Away { url: before.clone(), causes });
            told
        };
        if self.urls.len() == 1 {
            return false;
        }
        self.current.fetch_add(1, Ordering::Relaxed);
        if !told {
            note(&format!("{before} does not answer; trying {}", self.url()));
        }
        true
    }

    /// The error with all addresses in it, when none of them answered.
    pub(super) fn with_all_tried(&self, error: CliError) -> CliError {
        match error {
            CliError::Unreachable { hint, .. } => {
                let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
                let tried = away.iter().map(|away| {
                    let causes = away.causes.iter().map(|cause| plain(cause)).collect();
                    (away.url.to_string(), causes)
                });
                CliError::Unreachable { tried: tried.collect(), hint }
            }
            other => other,
        }
    }
}
