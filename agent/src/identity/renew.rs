//! Renews the certificate when less than a third of its life is left, and swaps it without a restart.

use std::sync::Arc;
use std::time::Duration;

use shared::time::Timestamp;
use shared::wire::controllers;
use shared::wire::host::{Joined, Renew};

use super::{Current, Error, Identity, Store, join};
use crate::app::App;
use crate::controller;

/// Longest sleep between two looks at the clock: it may be set while the agent sleeps.
const LOOK: Duration = Duration::from_secs(3600);
/// Shortest wait after a failure.
const RETRY: Duration = Duration::from_secs(30);

/// Watches the certificate until the agent stops.
pub async fn run(app: Arc<App>) {
    let store = Store::new(&app.config.agent.data_dir);
    let mut wait = wait_for(&app.identity.load(), Timestamp::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.shutdown.cancelled() => return,
        }
        let now = Timestamp::now();
        wait = if due(&app.identity.load(), now) {
            match renew(&app, &store).await {
                Ok(()) => wait_for(&app.identity.load(), now),
                Err(error) => {
                    tracing::warn!(
                        error = crate::log::chain(&error),
                        "the certificate could not be renewed; tries again"
                    );
                    RETRY.mul_f64(rand::random_range(1.0..2.0))
                }
            }
        } else {
            wait_for(&app.identity.load(), now)
        };
    }
}

/// Renews the certificate now.
///
/// # Errors
/// When no controller answers or refuses, or when the answer does not fit; the old one stays.
pub async fn renew(app: &App, store: &Store) -> Result<(), Error> {
    let (key_pem, csr) = join::request()?;
    let joined: Joined = app.controller.post("/agent/v1/renew", &Renew { csr }).await.map_err(join::refused)?;
    // The authority stays the one of the join: only an operator, by a new join, may change it.
    let issued = join::accept(&joined, key_pem, &store.ca_pem()?, app.identity.load().host_id)?;
    store.save_renewal(&issued)?;
    app.controller.tell(controllers::clean(joined.controllers.iter().map(String::as_str)));
    swap(&app.identity, store, app.config.controller.timeout())?;
    tracing::info!(until = %app.identity.load().not_after, "the certificate is renewed");
    Ok(())
}

fn swap(current: &Current, store: &Store, timeout: Duration) -> Result<(), Error> {
    current.store(Arc::new(store.load(timeout)?));
    Ok(())
}

/// Whether less than a third of the certificate's life is left.
fn due(identity: &Identity, now: Timestamp) -> bool {
    now.ms() >= renew_at(identity)
}

fn renew_at(identity: &Identity) -> i64 {
    let life = identity.not_after.ms().saturating_sub(identity.not_before.ms());
    identity.not_after.ms().saturating_sub(life / 3)
}

/// How long to sleep until it is due; hosts that joined together do not come together.
fn wait_for(identity: &Identity, now: Timestamp) -> Duration {
    let ms = u64::try_from(renew_at(identity).saturating_sub(now.ms())).unwrap_or(0);
    (Duration::from_millis(ms).mul_f64(rand::random_range(1.0..1.02)) + controller::A_MOMENT).min(LOOK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TestCa;
    use shared::id::HostId;

    #[test]
    fn a_certificate_is_due_in_its_last_third() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = TestCa::new().join(dir.path(), HostId::new(), "https://127.0.0.1:1");
        (identity.not_before, identity.not_after) = (Timestamp(0), Timestamp(3_000_000));
        assert!(!due(&identity, Timestamp(1_999_999)));
        assert!(due(&identity, Timestamp(2_000_000)) && due(&identity, Timestamp(9_000_000)));
        assert!(wait_for(&identity, Timestamp(0)) >= Duration::from_secs(2000));
        assert!(wait_for(&identity, Timestamp(9_000_000)) <= controller::A_MOMENT);
    }
}
