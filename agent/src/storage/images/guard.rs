//! Which servers images may be downloaded from: not this host itself, and nothing that only this host
//! can see.
//!
//! Whoever may create images names the URL, and the agent, which runs as root beside services that
//! trust the host, fetches it. So every address is looked at before it is connected to: those in a
//! URL or a redirect as they stand there, those of a name after it was resolved (exactly what was
//! looked at is connected to). Private networks are allowed: that is where image servers are. With a
//! proxy in the environment it is the proxy that resolves names, and its operator who decides.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::ifaddrs::getifaddrs;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

/// An address that is not connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This host.
    #[error(
        "{0} is this host itself, from which images are not downloaded; `[image] allow_loopback` in the agent's configuration allows it"
    )]
    Own(IpAddr),
    /// Link-local, multicast and the like.
    #[error("{0} is no address that images are downloaded from")]
    Special(IpAddr),
}

/// Decides which addresses may be connected to.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    allow_loopback: bool,
}

impl Guard {
    /// A guard; `allow_loopback` lets it pass this host's own addresses.
    #[must_use]
    pub const fn new(allow_loopback: bool) -> Self {
        Self { allow_loopback }
    }

    /// Looks at an address.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        self.check_among(address, own_addresses)
    }

    fn check_among(&self, address: IpAddr, own: impl FnOnce() -> Vec<IpAddr>) -> Result<(), Refused> {
        // What IPv4 looks like in IPv6 is IPv4 all the same.
        let address = address.to_canonical();
        let special = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
        };
        if special {
            return Err(Refused::Special(address));
        }
        // The kernel takes a connection to "no address" for one to itself; all of 0.0.0.0/8 is meant.
        let nobody = match address {
            IpAddr::V4(v4) => v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unspecified(),
        };
        if !self.allow_loopback && (address.is_loopback() || nobody || own().contains(&address)) {
            return Err(Refused::Own(address));
        }
        Ok(())
    }

    /// Looks at the address in a URL; one with a name passes, and is looked at when it is resolved.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        literal.map_or(Ok(()), |address| self.check(address))
    }

    /// Follows at most `max` redirects, none of them to a refused address.
    pub fn redirects(self, max: usize) -> Policy {
        Policy::custom(move |attempt| {
            if attempt.previous().len() > max {
                return attempt.error("too many redirects");
            }
            match self.check_url(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(refused) => attempt.error(refused),
            }
        })
    }

    /// Resolves names to addresses that are allowed.
    pub fn resolver(self) -> Arc<dyn Resolve> {
        Arc::new(self)
    }

    fn allowed(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let mut refused = Ok(());
        let mut allowed = Vec::new();
        for address in found {
            match self.check(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(error) => refused = Err(error),
            }
        }
        if allowed.is_empty() { refused.map(|()| allowed) } else { Ok(allowed) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = guard.allowed(found)?;
            Ok::<Addrs, _>(Box::new(allowed.into_iter()))
        })
    }
}

/// Why an address was refused, when that is what a request failed of.
#[must_use]
pub fn refusal(error: &reqwest::Error) -> Option<Refused> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |e| e.source()).find_map(|e| e.downcast_ref::<Refused>().copied())
}

/// Addresses of this host's links; when they cannot be read, none.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(links) = getifaddrs() else { return Vec::new() };
    let addresses = links.filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(allow_loopback: bool, address: &str) -> &'static str {
        let own = || vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        match Guard::new(allow_loopback).check_among(address.parse().unwrap(), own) {
            Ok(()) => "passes",
            Err(Refused::Own(_)) => "own",
            Err(Refused::Special(_)) => "special",
        }
    }

    #[test]
    fn this_host_is_refused_unless_allowed_and_special_addresses_always() {
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "0.1.2.3",
            "::ffff:127.0.0.1",
            "192.0.2.7",
            "2001:db8::7",
        ] {
            assert_eq!(verdict(false, own), "own", "{own}");
            assert_eq!(verdict(true, own), "passes", "{own}");
        }
        for special in
            ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "224.0.0.1", "255.255.255.255", "ff02::1"]
        {
            assert_eq!(verdict(false, special), "special", "{special}");
            assert_eq!(verdict(true, special), "special", "{special}");
        }
        for other in ["10.0.0.1", "172.16.3.4", "192.168.1.1", "192.0.2.8", "8.8.8.8", "2001:db8::8", "fd00::1"] {
            assert_eq!(verdict(false, other), "passes", "{other}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_found_however_it_is_written() {
        let guard = Guard::new(false);
        for bad in [
            "http://127.0.0.1:8080/x",
            "http://2130706433/",
            "http://0x7f.1/",
            "https://[::1]/",
            "http://[::ffff:7f00:1]/",
        ] {
            assert!(matches!(guard.check_url(&bad.parse().unwrap()), Err(Refused::Own(_))), "{bad}");
        }
        for good in ["http://images.example/", "https://198.51.100.1/x"] {
            assert_eq!(guard.check_url(&good.parse().unwrap()), Ok(()), "{good}");
        }
    }

    #[test]
    fn of_a_names_addresses_only_the_allowed_are_used() {
        let guard = Guard::new(false);
        let addresses =
            |list: &[&str]| list.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 80)).collect::<Vec<_>>();
        let mixed = guard.allowed(addresses(&["127.0.0.1", "198.51.100.1"]).into_iter());
        assert_eq!(mixed, Ok(addresses(&["198.51.100.1"])));
        assert!(guard.allowed(addresses(&["::1", "169.254.1.1"]).into_iter()).is_err());
    }

    #[test]
    fn this_host_has_its_loopback_address() {
        assert!(own_addresses().contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
