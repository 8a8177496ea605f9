//! Flow `image.create`.
//!
//! With a URL: accept → choose_host → fetch; the host that downloads it finds out what it is.
//! For an upload: accept → await_upload; the image stays `creating` until its content is there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::api::image::{Image, ImageSource};
use shared::id::{HostId, ResourceId};
use shared::wire::image::{DeleteImage, EnsureImage, ImageInfo};
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::file;
use crate::db::{self, Tx};
use crate::services::{announce, on_hosts};
use crate::specs;
use crate::workflow::{At, Flow, Step, StepCx};

/// Makes an image.
pub(super) struct Create;

/// Hosts that are asked to download, one after the other, before the download is given up.
const CANDIDATES: usize = 3;

/// The image, and what was found out on the way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    image: Image,
    /// The hosts that may download it, in the order in which they are asked.
    #[serde(default)]
    candidates: Vec<HostId>,
    /// The host that has downloaded it.
    #[serde(default)]
    host: Option<HostId>,
    /// What it turned out to be.
    #[serde(default)]
    info: Option<ImageInfo>,
}

impl State {
    pub(super) const fn new(image: Image) -> Self {
        Self { image, candidates: Vec::new(), host: None, info: None }
    }
}

impl Flow for Create {
    const KIND: &'static str = "image.create";
    const NOUN: &'static str = "image";
    /// Images are large and lines are slow.
    const TIMEOUT: Duration = Duration::from_secs(6 * 3600);
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.image.id.uuid()
    }

    fn steps(state: &State) -> Vec<Arc<dyn Step<State>>> {
        match state.image.source {
            ImageSource::Url { .. } => {
                vec![Arc::new(Accept), Arc::new(ChooseHost), Arc::new(Fetch)]
            }
            ImageSource::Upload => vec![Arc::new(Accept), Arc::new(AwaitUpload)],
        }
    }
}

struct Accept;

#[async_trait]
impl Step<State> for Accept {
    fn name(&self) -> &'static str {
        "accept"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        db::image::insert(tx, &state.image).await?;
        let content = json!({ "name": state.image.name });
        announce(tx, state.image.id, "created", Some(state.image.account_id), &content, at.now)
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        if db::image::delete(tx, state.image.id).await? {
            let content = json!({ "name": state.image.name });
            announce(tx, state.image.id, "deleted", Some(state.image.account_id), &content, at.now)?;
        }
        Ok(())
    }
}

/// Makes room for an upload, which is not waited for.
struct AwaitUpload;

#[async_trait]
impl Step<State> for AwaitUpload {
    fn name(&self) -> &'static str {
        "await_upload"
    }

    async fn apply(&self, cx: &StepCx, _: &mut State) -> Result<()> {
        file::make_folder(&cx.deps.data_dir).await
    }
}

/// Decides which hosts may download, and writes them down before one begins: the undoing must find them.
struct ChooseHost;

#[async_trait]
impl Step<State> for ChooseHost {
    fn name(&self) -> &'static str {
        "choose_host"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let mut hosts = db::host::accepting(tx.conn()).await?;
        // Any will do; different ones share the work.
        let (chosen, _) = hosts.partial_shuffle(&mut rand::rng(), CANDIDATES);
        state.candidates = chosen.iter().map(|host| host.id).collect();
        if state.candidates.is_empty() {
            let text = "no host is connected and enabled, so none can download the image: add one first";
            return Err(Error::new(Code::NoHostFits, text).into());
        }
        Ok(())
    }
}

/// Has a host download, and another one when that fails for reasons of its own.
struct Fetch;

/// Whether another host may succeed: what is wrong with the image is wrong on every host.
const fn is_of_the_host(error: &Error) -> bool {
    matches!(error.code, Code::HostUnreachable | Code::NoSpace | Code::HostFailed | Code::Unavailable)
}

#[async_trait]
impl Step<State> for Fetch {
    fn name(&self) -> &'static str {
        "fetch"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let command = EnsureImage { image: specs::image(&state.image, &cx.deps.settings) };
        let mut failed = Error::internal("no host was chosen");
        for (n, host) in (0..).zip(&state.candidates) {
            match cx.command(*host, n, &command).await {
                Ok(info) => {
                    (state.host, state.info) = (Some(*host), Some(info));
                    return Ok(());
                }
                // It was removed since it was chosen.
                Err(error) if error.code == Code::NotFound || is_of_the_host(&error) => {
                    tracing::info!(job.id = %cx.job_id, image.id = %state.image.id, host.id = %host, error = error.chain(),
                        "a host could not fetch an image; another one is asked");
                    failed = error;
                }
                Err(error) => {
                    failed = error;
                    break;
                }
            }
        }
        Err(failed.during(format_args!("image {} could not be fetched", state.image.name)))
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let (Some(host), Some(info)) = (state.host, &state.info) else {
            return Err(Error::internal("nothing is known of what was fetched").into());
        };
        let image = db::image::set_ready(tx, state.image.id, info).await?;
        db::image::add_host(tx, image.id, host).await?;
        let content = json!({ "name": image.name, "state": image.state });
        announce(tx, image.id, "state/changed", Some(image.account_id), &content, at.now)
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let hosts = db::soon(async {
            let (mut hosts, mut conn) = (Vec::new(), cx.deps.db.read().await?);
            for id in &state.candidates {
                // A host that was removed has taken its cache along.
                hosts.extend(db::host::get(&mut conn, *id).await?.map(|row| row.reference()));
            }
            Ok::<_, Error>(hosts)
        })
        .await?;
        on_hosts(cx, hosts, &DeleteImage { image_id: state.image.id, storages: Vec::new() }).await
    }
}
