//! Flow `image.finish_upload`: accept → check → place → tidy. The content is on the disk of this
//! controller already, in the upload's own file; one that is refused is removed, and the image waits for
//! another upload.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::api::image::{Image, ImageSource, ImageState};
use shared::id::{ImageId, ResourceId};
use shared::wire::image::ImageInfo;
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::file;
use crate::db::{self, Tx};
use crate::messages::image::Uploaded;
use crate::services::announce;
use crate::specs;
use crate::workflow::{At, Flow, Step, StepCx};

/// Makes an image ready whose content was uploaded.
pub(super) struct FinishUpload;

/// Which image, and what was uploaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    image_id: ImageId,
    uploaded: Uploaded,
    /// The image as it was declared.
    #[serde(default)]
    image: Option<Image>,
    /// What it turned out to be.
    #[serde(default)]
    info: Option<ImageInfo>,
}

impl State {
    pub(super) const fn new(image_id: ImageId, uploaded: Uploaded) -> Self {
        Self { image_id, uploaded, image: None, info: None }
    }

    /// The upload that this is about.
    pub(super) const fn upload(&self) -> Uuid {
        self.uploaded.upload
    }
}

impl Flow for FinishUpload {
    const KIND: &'static str = "image.finish_upload";
    const NOUN: &'static str = "image";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.image_id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Accept), Arc::new(Check), Arc::new(Place), Arc::new(Tidy)]
    }
}

struct Accept;

#[async_trait]
impl Step<State> for Accept {
    fn name(&self) -> &'static str {
        "accept"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let image = db::image::get(tx.conn(), state.image_id).await?;
        let image = image.ok_or_else(|| Error::not_found("image", state.image_id))?;
        match (&image.source, image.state) {
            (ImageSource::Upload, ImageState::Creating) => {}
            (ImageSource::Upload, other) => {
                let text = format!("image {} is {other}: it takes no content now", image.name);
                return Err(Error::new(Code::InvalidState, text).into());
            }
            (ImageSource::Url { .. }, _) => {
                let text = format!("image {} is downloaded from its URL: it takes no upload", image.name);
                return Err(Error::new(Code::InvalidState, text).into());
            }
        }
        state.image = Some(image);
        Ok(())
    }
}

/// Decides whether the content is good. One that is not is thrown away.
struct Check;

#[async_trait]
impl Step<State> for Check {
    fn name(&self) -> &'static str {
        "check"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let image = state.image.as_ref().ok_or_else(|| Error::internal("the image was not read"))?;
        let spec = specs::image(image, &cx.deps.settings);
        state.info = Some(file::check(&cx.deps.data_dir, image, &spec, &state.uploaded).await?);
        Ok(())
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        file::remove_upload(&cx.deps.data_dir, state.image_id, &state.uploaded).await
    }
}

/// Gives the content the name of its image and makes the image ready. Of several uploads the first one
/// that comes here wins: jobs of one image run one after the other.
struct Place;

#[async_trait]
impl Step<State> for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let now = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            db::image::get(&mut conn, state.image_id).await
        })
        .await?;
        let image = now.ok_or_else(|| Error::not_found("image", state.image_id))?;
        if image.state != ImageState::Creating {
            let text = format!("another upload of image {} came first", image.name);
            return Err(Error::new(Code::Conflict, text));
        }
        file::place(&cx.deps.data_dir, state.image_id, &state.uploaded).await
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let info = state.info.as_ref().ok_or_else(|| Error::internal("nothing is known of the upload"))?;
        let image = db::image::set_ready(tx, state.image_id, info).await?;
        let content = json!({ "name": image.name, "state": image.state });
        announce(tx, image.id, "state/changed", Some(image.account_id), &content, at.now)
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        file::unplace(&cx.deps.data_dir, state.image_id, &state.uploaded).await
    }
}

/// Forgets the name that the file had as an upload.
struct Tidy;

#[async_trait]
impl Step<State> for Tidy {
    fn name(&self) -> &'static str {
        "tidy"
    }

    /// The image is ready: a name too many is no reason to take it back.
    fn owed_when_failing(&self) -> bool {
        true
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        file::remove_upload(&cx.deps.data_dir, state.image_id, &state.uploaded).await
    }
}
