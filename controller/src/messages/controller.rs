//! Messages of the controller service: who shares the work, and who owns what.

use serde::{Deserialize, Serialize};
use shared::api::controller::{Controller, Ownership};
use shared::id::{ControllerId, JobId};
use uuid::Uuid;

use super::reads;
use crate::auth::Action;
use crate::bus::{ApiEvent, ApiRequest, Event, Message, request};

reads!(
    "controller", "controller.GetController" => GetController(ControllerId),
    "controller.ListControllers" => ListControllers, Controller, ReadInfrastructure
);

/// Lets a controller give its share to the others, and go on answering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainController {
    /// Which.
    pub id: ControllerId,
}
// Any controller may say so: the rows of controllers belong to nobody's share.
request!("controller.DrainController" to "controller" => Controller, DrainController);
impl ApiRequest for DrainController {
    const ACTION: Action = Action::Operate;
}

/// Lets a drained controller have its share again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivateController {
    /// Which.
    pub id: ControllerId,
}
request!("controller.ActivateController" to "controller" => Controller, ActivateController);
impl ApiRequest for ActivateController {
    const ACTION: Action = Action::Operate;
}

/// Asks who owns a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetOwnership {
    /// The resource.
    pub id: Uuid,
}
request!("controller.GetOwnership" to "controller" => Ownership, GetOwnership);
impl ApiRequest for GetOwnership {
    const ACTION: Action = Action::ReadInfrastructure;
}

/// A job was let go of, because its resource belongs to another controller now, which takes it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeUpJob {
    /// The job.
    pub id: JobId,
    /// Its resource.
    pub resource: Uuid,
}
request!("controller.TakeUpJob" to "controller" => (), TakeUpJob, about |m| m.resource);

/// The ring is another one: whoever has not seen it yet looks at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingChanged {
    /// Its generation.
    pub generation: u64,
}
impl Message for RingChanged {
    const NAME: &'static str = "controller.RingChanged";
}
impl Event for RingChanged {}

/// Outcomes of API calls, and what has happened to resources, were appended to the events by another controller: those
/// who wait for some look. What they are stands in the database, in order; nothing is told of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAppended {}
impl Message for EventsAppended {
    const NAME: &'static str = "controller.EventsAppended";
}
impl Event for EventsAppended {}
impl ApiEvent for EventsAppended {}
