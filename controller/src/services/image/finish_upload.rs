//! Flow `image.finish_upload`: accept → check. The content is on the disk of this controller already;
//! a content that is refused is removed, and the image waits for another upload.

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
}

impl Flow for FinishUpload {
    const KIND: &'static str = "image.finish_upload";
    const NOUN: &'static str = "image";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.image_id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Accept), Arc::new(Check)]
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

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let info = state.info.as_ref().ok_or_else(|| Error::internal("nothing is known of the upload"))?;
        let image = db::image::set_ready(tx, state.image_id, info).await?;
        let content = json!({ "name": image.name, "state": image.state });
        announce(tx, image.id, "state/changed", Some(image.account_id), &content, at.now).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let ready = {
            let mut conn = cx.deps.db.read().await?;
            let image = db::image::get(&mut conn, state.image_id).await?;
            image.is_some_and(|image| image.state != ImageState::Creating)
        };
        // Another job has made it ready meanwhile, of the same file.
        if ready { Ok(()) } else { file::remove(&cx.deps.data_dir, state.image_id).await }
    }
}
