//! Flow `host.maintain`: begin → drain. The host takes no new VM from the first moment; its VMs are moved away,
//! some at a time, each by a job of its own.
//!
//! What cannot be moved stays, and the job fails and says which and why; the host stays in maintenance all the
//! same, for that is what the operator wants of it. Cancelling the job, or a failure, takes nothing back: what has
//! moved has moved, and moves that are under way come to their own end. `enable` is what ends maintenance. VMs that
//! do not run stay where their disks are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::api::host::HostAdminState;
use shared::api::job::{JobRef, JobState};
use shared::api::vm::{MigrateVm as Body, VmState};
use shared::id::{HostId, JobId, ResourceId, VmId};
use shared::name::Name;
use shared::{Code, Error, Result};
use uuid::Uuid;

use crate::cx::Cx;
use crate::db::{self, Tx};
use crate::deps::Mover;
use crate::messages::host::MaintainHost;
use crate::messages::vm::MigrateVm;
use crate::services::{Context, announce, owner};
use crate::workflow::{At, Flow, Step, StepCx};

/// How often it is looked which VMs are left.
const LOOK: Duration = Duration::from_millis(500);
/// How long a VM's owner may take to accept a migration.
const ACCEPT: Duration = Duration::from_secs(30);

pub(super) async fn maintain(context: Context, cx: Cx, message: MaintainHost) -> Result<JobRef> {
    let state = State { id: message.id };
    context.engine.submit::<Maintain>(&cx, owner(&cx)?, state).await
}

/// Has VMs moved by messages to their owners.
pub(super) struct ByBus(pub(super) Context);

#[async_trait]
impl Mover for ByBus {
    async fn migrate(&self, vm: VmId) -> Result<JobId> {
        let accepted = self.0.bus()?.call(&Cx::system(ACCEPT), MigrateVm { id: vm, body: Body::default() }).await?;
        Ok(accepted.job_id)
    }
}

pub(super) struct Maintain;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    id: HostId,
}

impl Flow for Maintain {
    const KIND: &'static str = "host.maintain";
    const NOUN: &'static str = "host";
    const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Begin), Arc::new(Drain)]
    }
}

/// The host takes no new VMs. This stays, whatever becomes of the job.
struct Begin;

#[async_trait]
impl Step<State> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let row = db::host::get(tx.conn(), state.id).await?.ok_or_else(|| Error::not_found("host", state.id))?;
        let before = row.host.admin_state;
        if before != HostAdminState::Maintenance {
            db::host::update(tx, state.id, &row.host.name, HostAdminState::Maintenance).await?;
            let content = json!({ "from": before, "to": HostAdminState::Maintenance });
            announce(tx, state.id, "admin_state/changed", None, &content, at.now)?;
        }
        Ok(())
    }
}

/// Moves the VMs away.
struct Drain;

/// What is known of the VMs of a host while it is drained.
#[derive(Default)]
struct Progress {
    /// Moves that are under way, by VM.
    moving: HashMap<VmId, JobId>,
    /// Why a VM stays.
    stays: BTreeMap<VmId, String>,
    /// The most VMs that there were at a time.
    most: usize,
}

#[async_trait]
impl Step<State> for Drain {
    fn name(&self) -> &'static str {
        "drain"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let mover = cx.deps.mover.get().ok_or_else(|| Error::new(Code::Unavailable, "the controller is starting"))?;
        let parallel = usize::try_from(cx.deps.settings.integer("host.drain_parallel")).unwrap_or(1).max(1);
        let mut progress = Progress::default();
        loop {
            let looked = async {
                let vms = vms(cx, state.id).await?;
                ended(cx, &mut progress).await?;
                Ok::<_, Error>(vms)
            };
            let vms = match looked.await {
                Ok(vms) => vms,
                // In the hours that this may take a database may well be away: moves that are under way go on.
                Err(error) if error.code.is_transient() => {
                    tracing::debug!(host.id = %state.id, error = error.chain(), "the vms of a host could not be read; trying again");
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let left: Vec<_> = vms.iter().filter(|vm| !progress.stays.contains_key(&vm.id)).collect();
            if left.is_empty() && progress.moving.is_empty() {
                return report(&vms, progress.stays);
            }
            progress.most = progress.most.max(left.len());
            for vm in left.iter().filter(|vm| vm.state == VmState::Unknown) {
                let why = "its host does not answer: what it does there is not known";
                progress.stays.insert(vm.id, why.to_string());
            }
            for vm in left.iter().filter(|vm| matches!(vm.state, VmState::Running | VmState::Paused)) {
                if progress.moving.len() >= parallel {
                    break;
                }
                if progress.moving.contains_key(&vm.id) {
                    continue;
                }
                match mover.migrate(vm.id).await {
                    Ok(job) => drop(progress.moving.insert(vm.id, job)),
                    // Another job has it just now: it is looked at again.
                    Err(error) if error.code == Code::InvalidState || error.code.is_transient() => {
                        tracing::debug!(vm.id = %vm.id, error = error.chain(), "a vm cannot be moved yet");
                    }
                    Err(error) => drop(progress.stays.insert(vm.id, error.chain())),
                }
            }
            let done = progress.most.saturating_sub(left.len()) * 100 / progress.most.max(1);
            cx.progress(u8::try_from(done).unwrap_or(100)).await;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A VM of the host that runs, or may do so in a moment.
struct Active {
    id: VmId,
    name: Name,
    state: VmState,
}

async fn vms(cx: &StepCx, host: HostId) -> Result<Vec<Active>> {
    let rows = db::soon(async {
        let mut conn = cx.deps.db.read().await?;
        db::vm::active_on_host(&mut conn, host).await
    });
    Ok(rows.await?.into_iter().map(|(id, name, state)| Active { id, name, state }).collect())
}

/// Takes note of the moves that have ended.
async fn ended(cx: &StepCx, progress: &mut Progress) -> Result<()> {
    let under_way: Vec<_> = progress.moving.iter().map(|(vm, job)| (*vm, *job)).collect();
    for (vm, job) in under_way {
        let row = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            db::job::get(&mut conn, job).await
        });
        let Some(row) = row.await? else {
            progress.moving.remove(&vm);
            continue;
        };
        if !row.job.state.is_final() {
            continue;
        }
        progress.moving.remove(&vm);
        if let (JobState::Failed | JobState::Cancelled, Some(error)) = (row.job.state, row.job.error) {
            progress.stays.insert(vm, error.chain());
        }
    }
    Ok(())
}

/// The end: what stays, and why.
fn report(vms: &[Active], stays: BTreeMap<VmId, String>) -> Result<()> {
    // One that has gone by another way does not stay.
    let why: Vec<_> = vms.iter().filter_map(|vm| Some(format!("vm {}: {}", vm.name, stays.get(&vm.id)?))).collect();
    if why.is_empty() {
        return Ok(());
    }
    let text = format!("{} VMs could not be moved and stay on the host, which is in maintenance", why.len());
    Err(Error { causes: why, ..Error::new(Code::InUse, text) })
}
