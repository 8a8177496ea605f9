//! Key exchange of TLS by X25519 of AWS-LC, which takes half as long as that of `ring`. Agents are pinged with
//! connections on demand, and each agrees on a key: with very many hosts that is a good part of what pings cost.

use aws_lc_rs::agreement::{EphemeralPrivateKey, PublicKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// Length of a public key.
const LENGTH: usize = 32;

/// The group.
#[derive(Debug)]
pub(super) struct X25519OfAwsLc;

/// A key exchange that has begun.
struct Begun {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl SupportedKxGroup for X25519OfAwsLc {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let private =
            EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(|_| Error::FailedToGetRandomBytes)?;
        let public = private.compute_public_key().map_err(|_| Error::FailedToGetRandomBytes)?;
        Ok(Box::new(Begun { private, public }))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Begun {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let refused = || Error::from(PeerMisbehaved::InvalidKeyShare);
        if peer.len() != LENGTH {
            return Err(refused());
        }
        // A point of small order, whose secret would be known to everybody, is refused there.
        let peer = UnparsedPublicKey::new(&X25519, peer);
        agree_ephemeral(self.private, peer, refused(), |secret| Ok(SharedSecret::from(secret)))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_libraries_agree_on_the_same_secret_whoever_begins() {
        let ring = rustls::crypto::ring::kx_group::X25519;
        let groups: [&dyn SupportedKxGroup; 2] = [&X25519OfAwsLc, ring];
        for (client, server) in [(groups[0], groups[1]), (groups[1], groups[0])] {
            assert_eq!(client.name(), server.name());
            let begun = client.start().unwrap();
            let answered = server.start_and_complete(begun.pub_key()).unwrap();
            let secret = begun.complete(&answered.pub_key).unwrap();
            assert_eq!(secret.secret_bytes(), answered.secret.secret_bytes());
            assert_eq!(secret.secret_bytes().len(), LENGTH);
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        // The last two have a small order: 0 and 1.
        let mut one = [0; LENGTH];
        one[0] = 1;
        for key in [&[][..], &[9; LENGTH - 1], &[9; LENGTH + 1], &[0; LENGTH], &one] {
            assert!(X25519OfAwsLc.start().unwrap().complete(key).is_err(), "{key:?}");
        }
    }
}
