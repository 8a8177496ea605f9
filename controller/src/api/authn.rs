//! Who asks: bearer tokens, how fast wrong ones may be tried, and how much an account may ask.
//!
//! A token that was accepted is believed for a few seconds, so that a busy client costs no database;
//! a revoked one works that long at most. Wrong tokens are never remembered, only counted by address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::Clock as _;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, header};
use shared::Code;
use shared::api::account::AccountKind;
use shared::id::AccountId;
use tokio::time::Instant;

use super::error::{Failure, ForOperator};
use super::front::{Named, Peer};
use super::{Api, context};
use crate::auth::token::sha256_hex;
use crate::config::ApiConfig;
use crate::cx::{Caller, Cx};
use crate::messages::account::{Authenticate, Identity};

/// Most tokens and addresses that are remembered at a time.
const MAX_KEPT: usize = 16_384;
/// Longest token that is looked at.
const MAX_TOKEN: usize = 256;
/// How long the account service may take.
const ASK: Duration = Duration::from_secs(10);

type Limiter<K> = DefaultKeyedRateLimiter<K>;

/// What authentication remembers.
pub struct Gate {
    believed_for: Duration,
    known: Mutex<HashMap<String, (Identity, Instant)>>,
    wrong: Option<Limiter<IpAddr>>,
    /// Addresses that have to wait, and until when.
    waiting: Mutex<HashMap<IpAddr, Instant>>,
    accounts: Option<Limiter<AccountId>>,
    admins: Option<Limiter<AccountId>>,
    checks: AtomicU32,
}

fn per_second(rate: u32, burst: u32) -> Option<Quota> {
    Some(Quota::per_second(NonZeroU32::new(rate)?).allow_burst(NonZeroU32::new(burst.max(rate))?))
}

impl Gate {
    /// A gate with the configured rates.
    #[must_use]
    pub fn new(config: &ApiConfig) -> Self {
        let wrong = NonZeroU32::new(config.auth_failures_per_min).map(Quota::per_minute);
        Self {
            believed_for: config.token_cache(),
            known: Mutex::default(),
            wrong: wrong.map(RateLimiter::keyed),
            waiting: Mutex::default(),
            accounts: per_second(config.rate_per_s, config.rate_burst).map(RateLimiter::keyed),
            admins: per_second(config.admin_rate_per_s, config.admin_rate_burst).map(RateLimiter::keyed),
            checks: AtomicU32::new(0),
        }
    }

    fn remembered(&self, secret_sha256: &str, now_ms: i64) -> Option<Identity> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (identity, until) = known.get(secret_sha256)?;
        let alive = *until > Instant::now() && identity.expires_at.is_none_or(|at| at > now_ms);
        alive.then_some(*identity)
    }

    fn remember(&self, secret_sha256: String, identity: Identity) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KEPT {
            let now = Instant::now();
            known.retain(|_, (_, until)| *until > now);
            if known.len() >= MAX_KEPT {
                known.clear();
            }
        }
        known.insert(secret_sha256, (identity, Instant::now() + self.believed_for));
    }

    /// Believes no token any more without asking.
    pub(super) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Refuses an address that has tried too many wrong tokens.
    pub(super) fn may_try(&self, address: IpAddr) -> Result<(), Failure> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.get(&network(address)) {
            None => Ok(()),
            Some(until) if *until > Instant::now() => {
                let seconds = until.saturating_duration_since(Instant::now()).as_secs() + 1;
                let text = "too many wrong tokens came from this address: wait, and then give a valid one";
                Err(Failure::new(Code::RateLimited, text).retry_after(seconds))
            }
            Some(_) => {
                waiting.remove(&network(address));
                Ok(())
            }
        }
    }

    /// Counts a wrong token.
    pub(super) fn was_wrong(&self, address: IpAddr) {
        let Some(wrong) = &self.wrong else { return };
        let Err(too_many) = wrong.check_key(&network(address)) else { return };
        let wait = too_many.wait_time_from(governor::clock::DefaultClock::default().now());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_KEPT {
            waiting.clear();
        }
        waiting.insert(network(address), Instant::now() + wait.max(Duration::from_secs(1)));
        self.forget_idle(wrong);
    }

    fn may_ask(&self, identity: &Identity) -> Result<(), Failure> {
        let limiter = match identity.kind {
            AccountKind::Admin => &self.admins,
            AccountKind::Normal => &self.accounts,
        };
        let Some(limiter) = limiter else { return Ok(()) };
        self.forget_idle(limiter);
        limiter.check_key(&identity.account_id).map_err(|too_many| {
            let wait = too_many.wait_time_from(governor::clock::DefaultClock::default().now());
            let text = "this account sends more requests than it may: send them more slowly";
            Failure::new(Code::RateLimited, text).retry_after(wait.as_secs() + 1)
        })
    }

    /// Now and then drops keys that have been idle, so that a limiter stays small.
    fn forget_idle<K: std::hash::Hash + Eq + Clone>(&self, limiter: &Limiter<K>) {
        if self.checks.fetch_add(1, Relaxed) % 4096 == 4095 || limiter.len() > MAX_KEPT {
            limiter.retain_recent();
        }
    }
}

/// An address, or the /64 that an IPv6 address is in: one customer's network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        other => other.to_canonical(),
    }
}

/// The token in `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Result<&str, Failure> {
    let missing =
        || Failure::new(Code::Unauthenticated, "a token is needed: send the header Authorization: Bearer TOKEN");
    let header = headers.get(header::AUTHORIZATION).ok_or_else(missing)?.to_str().map_err(|_| missing())?;
    let (scheme, token) = header.split_once(' ').ok_or_else(missing)?;
    let token = token.trim();
    match scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_TOKEN).contains(&token.len()) {
        true => Ok(token),
        false => Err(missing()),
    }
}

/// Whom a request acts for, by its token.
///
/// # Errors
/// `unauthenticated`, `rate_limited`, or that the account service does not answer.
pub async fn identify(api: &Api, headers: &HeaderMap, named: &Named, address: IpAddr) -> Result<Identity, Failure> {
    let secret_sha256 = sha256_hex(bearer(headers)?);
    recheck(api, secret_sha256, named, address).await
}

/// The same for a token whose hash is known.
pub(super) async fn recheck(
    api: &Api,
    secret_sha256: String,
    named: &Named,
    address: IpAddr,
) -> Result<Identity, Failure> {
    if let Some(identity) = api.gate.remembered(&secret_sha256, api.clock.now().ms()) {
        return Ok(identity);
    }
    api.gate.may_try(address)?;
    let mut cx = Cx::system(ASK);
    (cx.request_id, cx.trace) = (Arc::clone(&named.request_id), named.trace);
    match api.bus.call(&cx, Authenticate { secret_sha256: secret_sha256.clone() }).await {
        Ok(identity) => {
            api.gate.remember(secret_sha256, identity);
            Ok(identity)
        }
        Err(error) => {
            if error.code == Code::Unauthenticated {
                api.gate.was_wrong(address);
            }
            Err(error.into())
        }
    }
}

/// Lets requests with a valid token through, with their [`Cx`].
pub async fn authenticate(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    match admit(&api, request).await {
        Err(failure) => failure.into_response(),
        Ok((admin, request)) => {
            let mut response = next.run(request).await;
            if admin {
                response.extensions_mut().insert(ForOperator);
            }
            response
        }
    }
}

async fn admit(api: &Api, request: Request) -> Result<(bool, Request), Failure> {
    let peer = request.extensions().get::<Peer>().copied();
    let address = peer.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |peer| peer.address);
    let named = request.extensions().get::<Named>().cloned();
    let named = named.ok_or_else(|| shared::Error::internal("a request without an id"))?;
    let identity = identify(api, request.headers(), &named, address).await?;
    api.gate.may_ask(&identity)?;
    let admin = identity.kind == AccountKind::Admin;
    let caller = Caller::Account { id: identity.account_id, admin };
    let request = context::with_cx(api, request, &named, caller).await?;
    Ok((admin, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_customer_is_a_network() {
        let a = network("2001:db8:1:2:3:4:5:6".parse().unwrap());
        assert_eq!(a, network("2001:db8:1:2::9".parse().unwrap()));
        assert_ne!(a, network("2001:db8:1:3::9".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), network("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_bearer_token_is_refused() {
        let headers = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert_eq!(bearer(&headers("bearer  abc ")).unwrap(), "abc");
        for bad in ["", "abc", "Basic abc", "Bearer ", "Bearer", &format!("Bearer {}", "a".repeat(300))] {
            assert_eq!(bearer(&headers(bad)).unwrap_err().error.code, Code::Unauthenticated, "{bad}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_guesses_has_to_wait() {
        let gate = Gate::new(&ApiConfig { auth_failures_per_min: 3, ..ApiConfig::default() });
        let (guesser, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..3 {
            gate.may_try(guesser).unwrap();
            gate.was_wrong(guesser);
        }
        gate.may_try(guesser).unwrap();
        gate.was_wrong(guesser);
        let refused = gate.may_try(guesser).unwrap_err();
        assert!(refused.error.code == Code::RateLimited && refused.retry_after_s >= Some(1));
        gate.may_try(other).unwrap();
        tokio::time::advance(Duration::from_secs(61)).await;
        gate.may_try(guesser).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_believed_for_a_moment_and_not_beyond_its_end() {
        let gate = Gate::new(&ApiConfig { token_cache_ms: 1000, ..ApiConfig::default() });
        let identity = Identity { account_id: AccountId::new(), kind: AccountKind::Normal, expires_at: Some(100) };
        gate.remember("h".into(), identity);
        assert_eq!(gate.remembered("h", 99), Some(identity));
        assert_eq!(gate.remembered("h", 100), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(gate.remembered("h", 0), None);
        for n in 0..2 * MAX_KEPT {
            gate.remember(n.to_string(), identity);
        }
        assert!(gate.known.lock().unwrap().len() <= MAX_KEPT);
    }
}
