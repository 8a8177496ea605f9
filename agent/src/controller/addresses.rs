//! Where controllers are reached, and in which order they are tried.
//!
//! Three lists count: what the operator configured, what controllers tell with each ping and command
//! (kept on disk, because it is wanted most when no controller answers), and what the join was given.
//! The address that answered last comes first; one that has just failed comes last, but is still tried.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use shared::wire::controllers;
use tokio::time::Instant;

use crate::identity::Store;

/// How long an address that has failed comes last.
const AVOID: Duration = Duration::from_secs(30);
/// Most addresses that are tried for one request.
const MAX: usize = controllers::MAX_CONTROLLERS + 16;

/// The addresses of the controllers.
pub struct Addresses {
    configured: Vec<String>,
    told: ArcSwap<Vec<String>>,
    store: Store,
    /// Held while the list is written to disk.
    writing: Mutex<()>,
    found: Mutex<Found>,
}

/// What requests have found out.
#[derive(Default)]
struct Found {
    answered: Option<String>,
    failed: HashMap<String, Instant>,
}

impl Addresses {
    /// The addresses of the configuration, and those that `store` has kept.
    pub fn new(configured: &[String], store: Store) -> Self {
        let told = store.told_controllers().unwrap_or_else(|error| {
            tracing::warn!(error = crate::log::chain(&error), "the kept addresses of controllers cannot be read");
            Vec::new()
        });
        Self {
            configured: configured.iter().map(|url| bare(url)).collect(),
            told: ArcSwap::from_pointee(told),
            store,
            writing: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// The addresses in the order in which they are to be tried; `first` before the others, unless it
    /// has just failed. `joined` is what the join was given.
    pub fn in_turn(&self, first: Option<&str>, joined: &[String]) -> Vec<String> {
        let found = self.found();
        let told = self.told.load();
        let answered = found.answered.iter().map(String::as_str);
        let all = first.into_iter().chain(answered.filter(|url| self.knows(url, &told, joined)));
        let all = all.chain(self.configured.iter().chain(told.iter()).chain(joined).map(String::as_str));
        let mut urls: Vec<String> = Vec::new();
        for url in all.map(bare) {
            if urls.len() < MAX && !urls.contains(&url) {
                urls.push(url);
            }
        }
        let just_failed = |url: &String| found.failed.get(url).is_some_and(|at| at.elapsed() < AVOID);
        // Stable: within each half the order stays.
        urls.sort_by_key(just_failed);
        urls
    }

    /// Takes note that a controller answered at this address.
    pub fn answered(&self, url: &str) {
        let mut found = self.found();
        found.failed.remove(url);
        if found.answered.as_deref() != Some(url) {
            found.answered = Some(url.to_string());
        }
    }

    /// Takes note that no controller answered at this address.
    pub fn failed(&self, url: &str) {
        let mut found = self.found();
        if found.failed.len() >= MAX {
            found.failed.retain(|_, at| at.elapsed() < AVOID);
        }
        if found.failed.len() < MAX {
            found.failed.insert(url.to_string(), Instant::now());
        }
    }

    /// Takes over the list that a controller tells, and keeps it on disk, when it names others than
    /// before: each controller tells the same in an order of its own. Writing may block for a moment; it
    /// happens when controllers come or go.
    pub fn tell(self: &Arc<Self>, list: Vec<String>) {
        if list.is_empty() || controllers::same(&self.told.load(), &list) {
            return;
        }
        tracing::info!(controllers = list.join(" "), "the controllers are reached elsewhere from now on");
        self.told.store(Arc::new(list));
        let addresses = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _one_at_a_time = addresses.writing.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = addresses.store.save_told_controllers(&addresses.told.load()) {
                tracing::warn!(error = crate::log::chain(&error), "the addresses of the controllers cannot be kept");
            }
        });
    }

    fn knows(&self, url: &str, told: &[String], joined: &[String]) -> bool {
        self.configured.iter().chain(told).chain(joined).any(|known| bare(known) == url)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bare(url: &str) -> String {
    url.trim_end_matches('/').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("https://{name}")).collect()
    }

    #[test]
    fn who_answered_is_first_and_who_failed_is_last_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = Arc::new(Addresses::new(&urls(&["a", "b/"]), Store::new(dir.path())));
        let joined = urls(&["b", "c"]);
        assert_eq!(addresses.in_turn(None, &joined), urls(&["a", "b", "c"]));
        addresses.answered("https://c");
        assert_eq!(addresses.in_turn(None, &joined), urls(&["c", "a", "b"]));
        assert_eq!(addresses.in_turn(Some("https://x"), &joined), urls(&["x", "c", "a", "b"]));
        addresses.failed("https://x");
        addresses.failed("https://a");
        assert_eq!(addresses.in_turn(Some("https://x"), &joined), urls(&["c", "b", "x", "a"]));
        addresses.found().failed.values_mut().for_each(|at| *at -= AVOID);
        assert_eq!(addresses.in_turn(Some("https://x"), &joined), urls(&["x", "c", "a", "b"]));
    }

    #[tokio::test]
    async fn what_is_told_is_kept_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        std::fs::create_dir_all(dir.path().join("identity")).unwrap();
        let addresses = Arc::new(Addresses::new(&[], store.clone()));
        addresses.tell(Vec::new());
        assert!(addresses.in_turn(None, &[]).is_empty());
        addresses.tell(urls(&["a", "b"]));
        assert_eq!(addresses.in_turn(None, &[]), urls(&["a", "b"]), "used at once");
        addresses.tell(urls(&["b", "a"]));
        assert_eq!(addresses.in_turn(None, &[]), urls(&["a", "b"]), "another controller says the same");
        while store.told_controllers().unwrap() != urls(&["a", "b"]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(Addresses::new(&[], store).in_turn(None, &urls(&["c"])), urls(&["a", "b", "c"]));
    }
}
