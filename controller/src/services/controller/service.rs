//! Handlers of the controller service.

use std::collections::HashMap;

use serde_json::json;
use shared::api::Link;
use shared::api::controller::{Controller, ControllerState, Ownership};
use shared::api::page::Page;
use shared::id::{ControllerId, ResourceId};
use shared::{Code, Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::controller::{
    ActivateController, DrainController, GetController, GetOwnership, ListControllers, RingChanged, TakeUpJob,
};
use crate::ring::HashRing;
use crate::services::{Context, announce};

/// A controller that has not touched its row for so long has no way to the database, or is dead: it does so each second.
const SILENT_MS: i64 = 3000;
/// Changes of the ring that are looked at to find since when somebody owns something.
const HISTORY: u32 = 200;

pub(super) async fn get(context: Context, _: Cx, message: GetController) -> Result<Controller> {
    read(&context, message.id).await
}

pub(super) async fn list(context: Context, _: Cx, message: ListControllers) -> Result<Page<Controller>> {
    let page = context.deps.db.page(&db::controller::LIST, message.params, None).await?;
    Ok(page.read(db::controller::from_row)?.map(|controller| complete(&context, controller)))
}

pub(super) async fn drain(context: Context, cx: Cx, message: DrainController) -> Result<Controller> {
    let others = context.deps.ring.members().into_iter().any(|member| member != message.id);
    if !others {
        let text = "no other controller is active: there is nobody to take over its share";
        return Err(Error::new(Code::InvalidState, text));
    }
    become_state(&context, &cx, message.id, ControllerState::Draining).await
}

pub(super) async fn activate(context: Context, cx: Cx, message: ActivateController) -> Result<Controller> {
    become_state(&context, &cx, message.id, ControllerState::Active).await
}

async fn become_state(context: &Context, cx: &Cx, id: ControllerId, state: ControllerState) -> Result<Controller> {
    let before = read(context, id).await?;
    if before.state == state {
        return Ok(before);
    }
    let generation = context.mutate(cx, move |tx, now| {
        Box::pin(async move {
            let generation = db::controller::set_state(tx, id, state).await?;
            announce(tx, id, state.as_str(), None, &json!({ "generation": generation }), now)?;
            Ok(generation)
        })
    });
    let generation = generation.await?;
    context.deps.ring.nudge();
    context.bus()?.publish(cx, &RingChanged { generation });
    read(context, id).await
}

pub(super) async fn ownership(context: Context, _: Cx, message: GetOwnership) -> Result<Ownership> {
    let ring = &context.deps.ring;
    let owner = ring.owner(message.id)?;
    let generation = ring.generation();
    let mut conn = context.deps.db.read().await?;
    let changes = db::controller::changes_before(&mut conn, generation + 1, HISTORY).await?;
    // The same few controllers come and go: a ring is laid out once for each set of them.
    let mut owned = HashMap::new();
    let since = changes
        .iter()
        .take_while(|change| {
            *owned
                .entry(&change.members)
                .or_insert_with(|| HashRing::new(&change.members).owner(message.id) == Some(owner))
        })
        .last();
    let address = db::controller::get(&mut conn, owner).await?.map(|controller| controller.address);
    Ok(Ownership {
        id: message.id,
        controller_id: owner,
        address: address.unwrap_or_default(),
        since: since.map_or_else(|| context.deps.clock.now(), |change| change.at),
        since_generation: since.map_or(generation, |change| change.generation),
        generation,
    })
}

pub(super) async fn take_up(context: Context, _: Cx, message: TakeUpJob) -> Result<()> {
    context.engine.enqueue(message.id, message.resource);
    Ok(())
}

async fn read(context: &Context, id: ControllerId) -> Result<Controller> {
    let mut conn = context.deps.db.read().await?;
    let controller = db::controller::get(&mut conn, id).await?;
    controller.map(|controller| complete(context, controller)).ok_or_else(|| Error::not_found("controller", id))
}

fn complete(context: &Context, mut controller: Controller) -> Controller {
    controller.share = context.deps.ring.share(controller.id);
    // What it says of itself was written when it could.
    let silent_ms = context.deps.clock.now().ms() - controller.heartbeat_at.ms();
    if silent_ms > SILENT_MS {
        controller.report.database.healthy = false;
        controller.report.database.error = Some(format!("its last heartbeat came {} s ago", silent_ms / 1000));
    }
    let path = format!("/v1/controllers/{}", controller.id.uuid());
    let action = match controller.state {
        ControllerState::Joining => None,
        ControllerState::Active => Some("drain"),
        ControllerState::Draining => Some("activate"),
    };
    if let Some(action) = action {
        controller.links.insert(action.into(), Link::new("POST", format!("{path}/{action}")));
    }
    controller.links.insert("self".into(), Link::new("GET", path));
    controller
}
