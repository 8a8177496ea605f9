//! Data volumes: what is accepted, where they may go, and the disk that they are promised.

use serde_json::json;
use shared::api::job::JobRef;
use shared::api::volume::{AttachVolume, Volume};
use shared::error::Code;
use shared::state::volume::VolumeState;
use shared::units::Bytes;

use super::vm::ready;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_placed_when_it_is_first_attached_and_stays_there() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let volume = cluster.volume(Bytes::gib(1)).await?;
    assert_eq!((volume.state, volume.host_id), (VolumeState::Available, None));
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/volumes/{}", volume.id);
    let attach: JobRef = cluster.api.post(&format!("{path}/attach"), &AttachVolume { vm_id: vm.id }).await?;
    cluster.api.succeed(&attach).await?;
    assert_eq!(cluster.api.get::<Volume>(&path).await?.host_id, vm.host_id);
    // Another VM cannot have it too.
    let other = cluster.vm(&image, &network).await?;
    let twice = cluster.api.post::<JobRef>(&format!("{path}/attach"), &AttachVolume { vm_id: other.id }).await;
    assert!(matches!(twice.unwrap_err().code(), Code::InUse | Code::InvalidState));
    let detach: JobRef = cluster.api.post(&format!("{path}/detach"), &json!({})).await?;
    cluster.api.succeed(&detach).await?;
    assert_eq!(cluster.api.get::<Volume>(&path).await?.host_id, vm.host_id, "its bytes are on that disk");
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_make_no_sense_are_refused() -> anyhow::Result<()> {
    let (cluster, _, _) = ready().await?;
    for size in
        [json!(0), json!(-1), json!(513), json!(1_048_577), json!(512), json!("1GiB"), json!(1.5), json!(u64::MAX)]
    {
        let body = json!({ "name": "v", "size": size });
        let failure = cluster.api.post::<Volume>("/v1/volumes", &body).await.err();
        let failure = failure.unwrap_or_else(|| panic!("{size} was taken"));
        assert_eq!(failure.code(), Code::InvalidRequest, "{size}: {failure}");
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_volume_is_only_its_vms() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/volumes/{}", vm.root_volume_id);
    for attempt in [
        cluster.api.delete::<JobRef>(&path).await,
        cluster.api.post(&format!("{path}/detach"), &json!({})).await,
        cluster.api.post(&format!("{path}/attach"), &AttachVolume { vm_id: vm.id }).await,
    ] {
        assert!(matches!(attempt.unwrap_err().code(), Code::InUse | Code::InvalidState));
    }
    assert_eq!(cluster.api.get::<Volume>(&path).await?.state, VolumeState::Attached);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_expunged_leaves_its_data_volumes() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let volume = cluster.volume(Bytes::gib(1)).await?;
    let path = format!("/v1/volumes/{}", volume.id);
    let attach: JobRef = cluster.api.post(&format!("{path}/attach"), &AttachVolume { vm_id: vm.id }).await?;
    cluster.api.succeed(&attach).await?;
    cluster.remove_vm(vm.id).await?;
    let left: Volume = cluster.api.get(&path).await?;
    assert_eq!((left.state, left.vm_id), (VolumeState::Available, None));
    assert!(cluster.sim_host(vm.host_id)?.state().volumes.contains_key(&volume.id));
    let delete: JobRef = cluster.api.delete(&path).await?;
    cluster.api.succeed(&delete).await?;
    assert!(!cluster.sim_host(vm.host_id)?.state().volumes.contains_key(&volume.id));
    cluster.assert_consistent().await?;
    cluster.stop().await
}
