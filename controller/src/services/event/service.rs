//! Handlers of the event service.

use std::time::Duration;

use shared::api::event::Event;
use shared::api::page::{MAX_LIMIT, Page};
use shared::{Error, Result};
use tokio::time::Instant;

use crate::cx::Cx;
use crate::db;
use crate::db::event::Cursors;
use crate::messages::event::{ListEvents, NextEvents, NextEventsReply};
use crate::services::{Context, answer_by};

/// How often the database is asked for events of other controllers, whose word of them may get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The same at first while a transaction runs that others' events wait for, since nobody says so when it comes to
/// nothing; then twice as long each time.
const LOOK_AGAIN_SOON: Duration = Duration::from_millis(50);

pub(super) async fn list(context: Context, cx: Cx, message: ListEvents) -> Result<Page<Event>> {
    Ok(db::event::list(&context.deps.db, message.params, cx.caller.scope()).await?)
}

pub(super) async fn next(context: Context, cx: Cx, message: NextEvents) -> Result<NextEventsReply> {
    let mut appended = context.deps.db.watch_events();
    let max = message.max.clamp(1, MAX_LIMIT);
    let until = answer_by(&cx);
    let mut after = message.after;
    let mut soon = LOOK_AGAIN_SOON;
    loop {
        // What is appended from here on wakes the wait below.
        appended.mark_unchanged();
        let (reply, cursors) = read(&context, &cx, after, max).await?;
        if !reply.events.is_empty() {
            return Ok(reply);
        }
        after = Some(reply.cursor);
        let again = if cursors.settled < cursors.newest { soon } else { LOOK_AGAIN };
        soon = (soon * 2).min(LOOK_AGAIN);
        tokio::select! {
            () = cx.cancelled.cancelled() => return Ok(reply),
            woken = tokio::time::timeout_at(until.min(Instant::now() + again), appended.changed()) => match woken {
                Ok(Ok(())) => {}
                // The database is closing.
                Ok(Err(_)) => return Ok(reply),
                Err(_) if Instant::now() >= until => return Ok(reply),
                Err(_) => {}
            },
        }
    }
}

async fn read(context: &Context, cx: &Cx, after: Option<i64>, max: u32) -> Result<(NextEventsReply, Cursors)> {
    let db = &context.deps.db;
    let mut conn = db.read().await?;
    let cursors = db::event::cursors(&mut conn, db.dialect()).await?;
    let Some(after) = after else {
        return Ok((NextEventsReply { events: Vec::new(), cursor: cursors.settled }, cursors));
    };
    let newest = cursors.newest;
    if !(0..=newest).contains(&after) {
        let text = format!("{after} is no cursor of this system, whose newest one is {newest}: begin again without it");
        return Err(Error::invalid("after", text));
    }
    let events = db::event::between(&mut conn, (after, cursors.settled), max, cx.caller.scope()).await?;
    // Without events for this caller, what was looked at needs no second look.
    let cursor = events.last().map_or(after.max(cursors.settled), |event| event.cursor);
    Ok((NextEventsReply { events, cursor }, cursors))
}
