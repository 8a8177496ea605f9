//! Flow `image.delete`: mark → remove_from_hosts → forget.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::Result;
use shared::api::image::{Image, ImageState};
use shared::id::{ImageId, ResourceId};
use shared::wire::image::DeleteImage;
use shared::{Code, Error};
use uuid::Uuid;

use super::file;
use crate::db::{self, Tx};
use crate::services::{announce, on_hosts};
use crate::specs;
use crate::workflow::{At, Flow, Step, StepCx};

/// Removes an image that nothing is based on.
pub(super) struct Delete;

/// Which image, and what it was before it was marked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    image_id: ImageId,
    #[serde(default)]
    before: Option<Image>,
}

impl State {
    pub(super) const fn new(image_id: ImageId) -> Self {
        Self { image_id, before: None }
    }
}

impl Flow for Delete {
    const KIND: &'static str = "image.delete";
    const NOUN: &'static str = "image";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.image_id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Mark), Arc::new(RemoveFromHosts), Arc::new(Forget)]
    }
}

/// Lets nothing more be made from it. One that is still being downloaded is refused: its job is
/// cancelled instead, which removes it.
struct Mark;

#[async_trait]
impl Step<State> for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let image = db::image::get(tx.conn(), state.image_id).await?;
        let image = image.ok_or_else(|| Error::not_found("image", state.image_id))?;
        if db::job::has_open(tx.conn(), state.image_id.uuid()).await? {
            let text = format!("another job works on image {}: wait for it or cancel it first", image.name);
            return Err(Error::new(Code::InvalidState, text).into());
        }
        // First the write, which holds the row: nothing new can be based on it from then on.
        let from = [ImageState::Creating, ImageState::Ready];
        let marked = db::image::change(tx, image.id, &from, ImageState::Deleting).await?;
        db::image::refuse_in_use(tx.conn(), &marked).await?;
        tell(tx, at, &marked).await?;
        state.before = Some(image);
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        let Some(before) = &state.before else {
            return Ok(());
        };
        match db::image::get(tx.conn(), state.image_id).await? {
            Some(image) if image.state == ImageState::Deleting => {
                let restored = db::image::change(tx, image.id, &[ImageState::Deleting], before.state).await?;
                tell(tx, at, &restored).await
            }
            _ => Ok(()),
        }
    }
}

async fn tell(tx: &mut Tx, at: &At, image: &Image) -> db::Result<()> {
    let content = json!({ "name": image.name, "state": image.state });
    announce(tx, image.id, "state/changed", Some(image.account_id), &content, at.now)
}

/// Empties the caches of the hosts that can be reached; the comparison of inventories does it on the
/// others when they are back.
struct RemoveFromHosts;

#[async_trait]
impl Step<State> for RemoveFromHosts {
    fn name(&self) -> &'static str {
        "remove_from_hosts"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let (mut hosts, shared) = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            let hosts = db::image::connected_hosts(&mut conn, state.image_id).await?;
            Ok::<_, db::Error>((hosts, db::storage::shared_with_host(&mut conn).await?))
        })
        .await?;
        // On a shared storage it lies once, and any host that can use that removes it.
        let storages = shared.iter().map(|(storage, _)| specs::storage(storage)).collect();
        hosts.extend(shared.into_iter().map(|(_, host)| host));
        hosts.sort_unstable_by_key(|host| host.id);
        hosts.dedup_by_key(|host| host.id);
        on_hosts(cx, hosts, &DeleteImage { image_id: state.image_id, storages }).await
    }
}

/// Removes the uploaded file and then the row. Nothing can fail behind it, so no image is left without
/// its content.
struct Forget;

#[async_trait]
impl Step<State> for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        file::remove(&cx.deps.data_dir, state.image_id).await
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        if db::image::delete(tx, state.image_id).await?
            && let Some(image) = &state.before
        {
            let content = json!({ "name": image.name });
            announce(tx, image.id, "deleted", Some(image.account_id), &content, at.now)?;
        }
        Ok(())
    }
}
