//! Places for what stays open: event streams and consoles, bounded in all and for each account, so
//! that nobody can take all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shared::id::AccountId;
use shared::{Code, Error};

/// What is open now.
#[derive(Debug)]
pub(super) struct Streams {
    max: usize,
    max_per_account: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_account: HashMap<AccountId, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    streams: Arc<Streams>,
    account: Option<AccountId>,
}

impl Streams {
    pub(super) fn new(max: usize, max_per_account: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_account, open: Mutex::default() })
    }

    /// Takes a place for an account; Kring itself (`None`) is bounded only in all.
    pub(super) fn open(self: &Arc<Self>, account: Option<AccountId>) -> Result<Place, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = account.map_or(0, |account| open.by_account.get(&account).copied().unwrap_or(0));
        if own >= self.max_per_account {
            let text = "this account has as many event streams and consoles open as it may: close some";
            return Err(Error::new(Code::RateLimited, text));
        }
        if open.all >= self.max {
            let text = "too many event streams and consoles are open: try again later";
            return Err(Error::new(Code::Unavailable, text));
        }
        open.all += 1;
        if let Some(account) = account {
            open.by_account.insert(account, own + 1);
        }
        Ok(Place { streams: Arc::clone(self), account })
    }

    /// How many are open.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        let Some(account) = self.account else { return };
        match open.by_account.get_mut(&account) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                open.by_account.remove(&account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_cannot_take_all_places_and_places_come_back() {
        let streams = Streams::new(3, 2);
        let (greedy, other) = (Some(AccountId::new()), Some(AccountId::new()));
        let held = [streams.open(greedy).unwrap(), streams.open(greedy).unwrap()];
        assert_eq!(streams.open(greedy).unwrap_err().code, Code::RateLimited);
        let last = streams.open(other).unwrap();
        assert_eq!(streams.open(None).unwrap_err().code, Code::Unavailable);
        drop((held, last));
        assert_eq!((streams.count(), streams.open.lock().unwrap().by_account.len()), (0, 0));
    }
}
