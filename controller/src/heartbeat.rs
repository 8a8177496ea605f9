//! The heartbeat: a thread and a database connection of its own, so that no load can keep it waiting.
//!
//! It touches this controller's row every second. When the row is gone, or cannot be touched for as
//! long as others would wait before they take over, this controller stops acting: it fires `fenced`,
//! and the process ends. It measures that time with the monotonic clock, from the last touch that the
//! database confirmed.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use shared::id::ControllerId;
use tokio_util::sync::CancellationToken;

use crate::db::{self, Dialect};

/// Time between two touches.
const EVERY: Duration = Duration::from_secs(1);
/// Without a confirmed touch for this long, this controller stops. Others take over later than this.
pub const SELF_STOP: Duration = Duration::from_secs(8);

/// A running heartbeat. Dropping it ends the thread.
pub struct Heartbeat {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts to touch the row of `id` in the database at `url`; fires `fenced` when this controller
    /// must not act any more.
    pub fn start(url: String, dialect: Dialect, id: ControllerId, fenced: CancellationToken) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut pulse = Pulse { url, dialect, id, conn: None };
            let mut confirmed = Instant::now();
            while matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout)) {
                let limit = SELF_STOP.saturating_sub(confirmed.elapsed());
                match runtime.block_on(async { tokio::time::timeout(limit, pulse.touch()).await }) {
                    Ok(Ok(true)) => confirmed = Instant::now(),
                    Ok(Ok(false)) => {
                        tracing::error!(controller.id = %id, "this controller's row is gone: others have taken over; stopping");
                        return fenced.cancel();
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(controller.id = %id, error = &error as &dyn std::error::Error, "the heartbeat failed");
                    }
                    Err(_) => tracing::warn!(controller.id = %id, "the database did not answer the heartbeat in time"),
                }
                if confirmed.elapsed() >= SELF_STOP {
                    tracing::error!(controller.id = %id, "no heartbeat for {} s; stopping before others take over", SELF_STOP.as_secs());
                    return fenced.cancel();
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Ends the thread and waits for it.
    pub fn stop(mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat panicked");
        }
    }
}

/// The connection, opened again after a failure.
struct Pulse {
    url: String,
    dialect: Dialect,
    id: ControllerId,
    conn: Option<db::Conn>,
}

impl Pulse {
    async fn touch(&mut self) -> db::Result<bool> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => db::connect_writer(&self.url, self.dialect).await?,
        };
        let touched = db::controller::touch(&mut conn, self.dialect, self.id).await?;
        self.conn = Some(conn);
        Ok(touched)
    }
}
