//! `/v1/vms`: virtual machines. Consoles: [`super::console`].

use std::sync::Arc;

use axum::extract::State;
use shared::api::job::{Job, JobRef};
use shared::api::page::{ListParams, Page};
use shared::api::vm::{
    CreateVm as Body, MigrateVm as MigrateBody, PlacementReport, StopVm as StopBody, UpdateVm as UpdateBody, Vm,
};
use shared::id::VmId;

use super::Api;
use super::extract::{Id, Json, JsonOrDefault, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::vm::{
    CreateVm, DeleteVm, ExpungeVm, GetVm, ListVms, MigrateVm, PauseVm, PlanVm, RebootVm, RecoverVm, ResumeVm, StartVm,
    StopVm, UpdateVm,
};

/// Lists VMs.
#[utoipa::path(get, path = "/vms", tag = "vms", params(ListParams), responses((status = 200, body = Page<Vm>)))]
pub async fn list_vms(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListVms { params }).await
}

/// Makes a VM and starts it. With `dry_run=true`, answers where it would be placed and why.
#[utoipa::path(post, path = "/vms", tag = "vms", request_body = Body, responses((status = 202, body = JobRef), (status = 200, description = "The finished job, or with `dry_run` the placement.", content((Job = "application/json"), (PlacementReport = "application/json; dry_run=true")))))]
pub async fn create_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    if cx.dry_run {
        return reply::ok(&api.call(&cx, PlanVm { id, body }).await?);
    }
    reply::job(&api, &cx, wait, api.call(&cx, CreateVm { id, body }).await?).await
}

/// Shows a VM.
#[utoipa::path(get, path = "/vms/{id}", tag = "vms", params(("id" = VmId, Path)), responses((status = 200, body = Vm)))]
pub async fn get_vm(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<VmId>) -> Answer {
    reply::ok(&api.call(&cx, GetVm { id }).await?)
}

/// Renames a VM, or resizes a stopped one.
#[utoipa::path(patch, path = "/vms/{id}", tag = "vms", params(("id" = VmId, Path)), request_body = UpdateBody, responses((status = 200, body = Vm)))]
pub async fn update_vm(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<VmId>, Json(body): Json<UpdateBody>) -> Answer {
    reply::ok(&api.call(&cx, UpdateVm { id, body }).await?)
}

/// Deletes a VM so that it can be recovered for some time.
#[utoipa::path(delete, path = "/vms/{id}", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn delete_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, DeleteVm { id }).await?).await
}

/// Starts a stopped or crashed VM.
#[utoipa::path(post, path = "/vms/{id}/start", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn start_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, StartVm { id }).await?).await
}

/// Stops a VM.
#[utoipa::path(post, path = "/vms/{id}/stop", tag = "vms", params(("id" = VmId, Path)), request_body = StopBody, responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn stop_vm(
    State(api): State<Arc<Api>>,
    cx: Cx,
    wait: Wait,
    Id(id): Id<VmId>,
    JsonOrDefault(body): JsonOrDefault<StopBody>,
) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, StopVm { id, body }).await?).await
}

/// Restarts a running VM.
#[utoipa::path(post, path = "/vms/{id}/reboot", tag = "vms", params(("id" = VmId, Path)), request_body = StopBody, responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn reboot_vm(
    State(api): State<Arc<Api>>,
    cx: Cx,
    wait: Wait,
    Id(id): Id<VmId>,
    JsonOrDefault(body): JsonOrDefault<StopBody>,
) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, RebootVm { id, body }).await?).await
}

/// Halts the processors of a running VM.
#[utoipa::path(post, path = "/vms/{id}/pause", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn pause_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, PauseVm { id }).await?).await
}

/// Lets a paused VM run on.
#[utoipa::path(post, path = "/vms/{id}/resume", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn resume_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, ResumeVm { id }).await?).await
}

/// Moves a running or paused VM to another host, while it runs.
#[utoipa::path(post, path = "/vms/{id}/migrate", tag = "vms", params(("id" = VmId, Path)), request_body = MigrateBody, responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn migrate_vm(
    State(api): State<Arc<Api>>,
    cx: Cx,
    wait: Wait,
    Id(id): Id<VmId>,
    JsonOrDefault(body): JsonOrDefault<MigrateBody>,
) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, MigrateVm { id, body }).await?).await
}

/// Brings a deleted VM back, stopped.
#[utoipa::path(post, path = "/vms/{id}/recover", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn recover_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, RecoverVm { id }).await?).await
}

/// Removes a deleted VM and its root volume for good.
#[utoipa::path(post, path = "/vms/{id}/expunge", tag = "vms", params(("id" = VmId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn expunge_vm(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VmId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, ExpungeVm { id }).await?).await
}
