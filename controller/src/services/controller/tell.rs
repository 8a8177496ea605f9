//! Tells the other controllers that events were appended here, so that whoever waits for events there
//! wakes. What is told too much or lost does no harm: they look by themselves now and then.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::cx::Cx;
use crate::messages::controller::EventsAppended;
use crate::services::Context;

/// Time between two messages: what is appended meanwhile is told by one.
const PAUSE: Duration = Duration::from_millis(50);

/// Tells, until `stop`.
pub async fn run(context: Context, stop: CancellationToken) {
    let mut appended = context.deps.db.watch_own_events();
    let told = async {
        while appended.changed().await.is_ok() {
            if context.deps.ring.is_shared()
                && let Ok(bus) = context.bus()
            {
                bus.publish(&Cx::system(Duration::from_secs(10)), &EventsAppended {});
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(told).await;
}
