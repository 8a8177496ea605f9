//! Messages of the event service.

use serde::{Deserialize, Serialize};
use shared::api::event::Event;
use shared::api::page::{ListParams, Page};

use crate::auth::Action;
use crate::bus::{ApiRequest, request};

/// Asks for a page of events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEvents {
    /// Which, in what order, how many.
    pub params: ListParams,
}
request!("event.ListEvents" to "event" => Page<Event>, ListEvents);
impl ApiRequest for ListEvents {
    const ACTION: Action = Action::Read;
}

/// Asks for the events after a cursor, oldest first; waits for one until the deadline of the call
/// when there is none yet, and answers an empty list then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextEvents {
    /// The last cursor that was seen; `None`: only what happens from now on.
    pub after: Option<i64>,
    /// Most events wanted.
    pub max: u32,
}
request!("event.NextEvents" to "event" => NextEventsReply, NextEvents);
impl ApiRequest for NextEvents {
    const ACTION: Action = Action::Read;
}

/// Some events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NextEventsReply {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// Where to go on, also when there are none.
    pub cursor: i64,
}
