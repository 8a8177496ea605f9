//! Accepting requests about VMs: checking them, and submitting their flows.

use shared::api::job::JobRef;
use shared::api::vm::{CreateVm as Body, MAX_USER_DATA, PlacementReport, StopVm as StopBody, VmState};
use shared::id::{ClusterId, ResourceId, VmId, VolumeId};
use shared::units::Bytes;
use shared::{Code, Error, Result};

use super::create::{Create, State as CreateState};
use super::read::find;
use super::transition::State;
use super::{attach_volume, migrate};
use crate::cx::Cx;
use crate::db;
use crate::messages::vm::{CreateVm, MigrateVm, PlanVm};
use crate::services::{Context, check_text, same_or_conflict};
use crate::workflow::Flow;

/// Most network cards of a VM.
const MAX_NICS: usize = 8;
/// Most ssh keys of a VM.
const MAX_SSH_KEYS: usize = 20;
/// Smallest guest memory that anything boots with.
const MIN_MEMORY: Bytes = Bytes::mib(16);

pub(super) async fn create(context: Context, cx: Cx, message: CreateVm) -> Result<JobRef> {
    if let Some(job) = repeated(&context, &message).await? {
        return Ok(job);
    }
    let state = resolve(&context, &cx, message.id, message.body).await?;
    context.engine.submit::<Create>(&cx, state.account, state).await
}

pub(super) async fn plan(context: Context, cx: Cx, message: PlanVm) -> Result<PlacementReport> {
    let state = resolve(&context, &cx, message.id, message.body).await?;
    context.deps.placement.plan(&state.request()).await
}

/// Submits a flow that needs nothing but the VM.
pub(super) async fn verb<F: Flow<State = State>>(context: Context, cx: Cx, id: VmId) -> Result<JobRef> {
    submit::<F>(context, cx, State::new(id)).await
}

/// Submits a flow that stops a guest.
pub(super) async fn stop<F: Flow<State = State>>(context: Context, cx: Cx, id: VmId, body: StopBody) -> Result<JobRef> {
    let default = context.deps.settings.integer("vm.stop_timeout");
    let timeout_s = body.timeout_s.unwrap_or_else(|| u32::try_from(default).unwrap_or(60));
    if !(1..=3600).contains(&timeout_s) {
        return Err(Error::invalid("timeout_s", "give 1 to 3600 seconds"));
    }
    submit::<F>(context, cx, State { mode: body.mode, timeout_s, ..State::new(id) }).await
}

async fn submit<F: Flow<State = State>>(context: Context, cx: Cx, state: State) -> Result<JobRef> {
    let account = find(&context, state.id).await?.account_id;
    context.engine.submit::<F>(&cx, account, state).await
}

/// Submits a migration.
pub(super) async fn migrate(context: Context, cx: Cx, message: MigrateVm) -> Result<JobRef> {
    if let Some(host) = message.body.host_id
        && context.deps.db.reaches.get(host).await?.is_none()
    {
        return Err(Error::invalid("host_id", format!("there is no host {host}: `kring host list` shows them")));
    }
    let account = find(&context, message.id).await?.account_id;
    let overcommit = context.deps.settings.number("placement.storage_overcommit");
    let state = migrate::State::new(message.id, message.body.host_id, overcommit);
    context.engine.submit::<migrate::Migrate>(&cx, account, state).await
}

/// Submits attaching or detaching a volume.
pub(super) async fn disk<F: Flow<State = attach_volume::State>>(
    context: Context,
    cx: Cx,
    vm: VmId,
    volume: VolumeId,
) -> Result<JobRef> {
    let account = find(&context, vm).await?.account_id;
    let storage_overcommit = context.deps.settings.number("placement.storage_overcommit");
    let state = attach_volume::State { vm, volume, storage_overcommit, device: None, placed_on: None, came_from: None };
    context.engine.submit::<F>(&cx, account, state).await
}

/// The job of an earlier, equal create of the same id; a conflict when it was not equal.
async fn repeated(context: &Context, message: &CreateVm) -> Result<Option<JobRef>> {
    if context.deps.db.vms.get(message.id).await?.is_none() {
        return Ok(None);
    }
    let mut conn = context.deps.db.read().await?;
    let conflict = || Error::new(Code::Conflict, format!("a vm with the id {} exists: choose another id", message.id));
    let Some(job) = db::job::find(&mut conn, message.id.uuid(), Create::KIND).await? else { return Err(conflict()) };
    let first: CreateState = serde_json::from_str(&job.data).map_err(|_| conflict())?;
    same_or_conflict("vm", &Body { id: None, ..first.body }, &Body { id: None, ..message.body.clone() })?;
    Ok(Some(JobRef { job_id: job.job.id, resource: job.job.resource }))
}

/// Checks a create and finds what it names.
async fn resolve(context: &Context, cx: &Cx, id: VmId, body: Body) -> Result<CreateState> {
    check_body(&body)?;
    let account = cx.caller.account().ok_or_else(|| Error::internal("a vm is created by an account"))?;
    let db = &context.deps.db;
    let visible = |owner| cx.caller.is_admin() || owner == account;
    let image = db.images.get(body.image_id).await?.filter(|image| visible(image.account_id));
    let image = image.ok_or_else(|| {
        Error::invalid("image_id", format!("there is no image {}: `kring image list` shows them", body.image_id))
    })?;
    let virtual_size = image.virtual_size.ok_or_else(|| {
        Error::new(Code::InvalidState, format!("image {} is {}: wait until it is ready", image.name, image.state))
    })?;
    let (vcpus, memory) = match (body.instance_type_id, body.vcpus, body.memory) {
        (Some(wanted), None, None) => {
            let kind = db::instance_type::get(&mut db.read().await?, wanted).await?;
            let kind =
                kind.ok_or_else(|| Error::invalid("instance_type_id", format!("there is no instance type {wanted}")))?;
            (kind.vcpus, kind.memory)
        }
        (None, Some(vcpus), Some(memory)) => (vcpus, memory),
        _ => return Err(Error::invalid("instance_type_id", "give either instance_type_id, or both vcpus and memory")),
    };
    check_size(vcpus, memory)?;
    let disk = Bytes(body.root_size.unwrap_or(virtual_size).0.next_multiple_of(512));
    if disk < virtual_size {
        return Err(Error::invalid(
            "root_size",
            format!("the image unfolds to {virtual_size}: give at least {}", virtual_size.0),
        ));
    }
    if let Some(wanted) = body.storage_id
        && db.storages.get(wanted).await?.is_none()
    {
        return Err(Error::invalid("storage_id", format!("there is no storage {wanted}")));
    }
    let mut cluster: Option<ClusterId> = None;
    let mut uplinks: Vec<String> = Vec::new();
    for (n, nic) in body.nics.iter().enumerate() {
        let network = db.networks.get(nic.network_id).await?.filter(|network| visible(network.account_id));
        let field = format!("nics[{n}].network_id");
        let network = network.ok_or_else(|| {
            Error::invalid(&field, format!("there is no network {}: `kring network list` shows them", nic.network_id))
        })?;
        if cluster.is_some_and(|cluster| cluster != network.cluster_id) {
            return Err(Error::invalid(&field, "the networks of a VM must be in one cluster"));
        }
        cluster = Some(network.cluster_id);
        uplinks.extend(network.uplink.filter(|uplink| !uplinks.contains(uplink)));
    }
    let hostname = match &body.hostname {
        Some(hostname) => hostname.clone(),
        None => body.name.to_hostname(),
    };
    Ok(CreateState {
        id,
        account,
        vcpus,
        memory,
        disk,
        hostname,
        image,
        cluster,
        root_volume: VolumeId::new(),
        storage_overcommit: context.deps.settings.number("placement.storage_overcommit"),
        uplinks,
        shortlist: Vec::new(),
        place: None,
        body,
    })
}

/// Refuses sizes that no VM can have.
pub(super) fn check_size(vcpus: u32, memory: Bytes) -> Result<()> {
    if !(1..=512).contains(&vcpus) {
        return Err(Error::invalid("vcpus", "give 1 to 512"));
    }
    if memory < MIN_MEMORY || memory > Bytes::gib(16 * 1024) {
        return Err(Error::invalid("memory", format!("give {MIN_MEMORY} to 16 TiB, in bytes")));
    }
    if !memory.0.is_multiple_of(Bytes::mib(1).0) {
        return Err(Error::invalid("memory", "give a multiple of 1 MiB"));
    }
    Ok(())
}

fn check_body(body: &Body) -> Result<()> {
    if body.nics.len() > MAX_NICS {
        return Err(Error::invalid("nics", format!("a VM has at most {MAX_NICS} network cards")));
    }
    if body.ssh_keys.len() > MAX_SSH_KEYS {
        return Err(Error::invalid("ssh_keys", format!("give at most {MAX_SSH_KEYS}")));
    }
    for (n, key) in body.ssh_keys.iter().enumerate() {
        let field = format!("ssh_keys[{n}]");
        check_text(&field, key, 16 * 1024)?;
        let fields: Vec<&str> = key.split_whitespace().collect();
        if fields.len() < 2 || key.trim().contains('\n') {
            return Err(Error::invalid(
                field,
                "is not a public key: give one line such as `ssh-ed25519 AAAA… comment`",
            ));
        }
    }
    if body.user_data.as_ref().is_some_and(|data| data.len() > MAX_USER_DATA) {
        return Err(Error::invalid("user_data", format!("has more than {MAX_USER_DATA} bytes")));
    }
    if let Some(hostname) = &body.hostname {
        check_hostname(hostname)?;
    }
    Ok(())
}

/// A host name or a dotted one, by RFC 1123.
fn check_hostname(hostname: &str) -> Result<()> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if hostname.len() > 253 || !hostname.split('.').all(label) {
        return Err(Error::invalid(
            "hostname",
            "use labels of letters, digits and '-' with '.' between, such as web-1.example.com",
        ));
    }
    Ok(())
}

/// Whether a resting state may be resized in.
pub(super) const fn may_resize(state: VmState) -> bool {
    matches!(state, VmState::Stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_checked() {
        for good in ["a", "web-1", "db.example.com", "1st"] {
            assert_eq!(check_hostname(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a_b", "a..b", "ä", "a b", &"x".repeat(64), "a\nb: c"] {
            assert!(check_hostname(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(check_size(1, Bytes::mib(128)), Ok(()));
        for (vcpus, memory) in
            [(0, Bytes::gib(1)), (513, Bytes::gib(1)), (1, Bytes(1)), (1, Bytes(Bytes::gib(1).0 + 1))]
        {
            assert!(check_size(vcpus, memory).is_err());
        }
    }
}
