//! Networks: addresses given out, ranges refused, networks in use.

use std::collections::BTreeSet;

use anyhow::Context;
use futures_util::future::join_all;
use serde_json::json;
use shared::api::job::JobRef;
use shared::api::network::Network;
use shared::api::vm::{CreateNic, CreateVm};
use shared::error::Code;

use super::vm::ready;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_small_network_every_address_is_given_once_and_no_more() -> anyhow::Result<()> {
    let (cluster, image, _) = ready().await?;
    // Eight addresses: network, broadcast, gateway and service are not for guests.
    let network = cluster.network_in("192.168.7.0/29").await?;
    let jobs = join_all((0..10).map(|_| async {
        let body = cluster.vm_body(&image, &network);
        let job: JobRef = match cluster.api.post("/v1/vms", &body).await {
            Ok(job) => job,
            Err(failure) => return anyhow::Ok(Err(failure.code())),
        };
        match cluster.api.wait_job(job.job_id).await?.error {
            None => Ok(Ok(cluster.get_vm(body.id.unwrap_or_default()).await?.nics[0].ip)),
            Some(error) => Ok(Err(error.code)),
        }
    }))
    .await;
    let ends: Vec<_> = jobs.into_iter().collect::<Result<_, _>>()?;
    let given: BTreeSet<_> = ends.iter().filter_map(|end| end.as_ref().ok().copied()).collect();
    assert_eq!(given.len(), 4, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| **end == Err(Code::Exhausted)).count(), 6, "{ends:?}");
    assert!(!given.contains(&network.gateway.context("a gateway")?) && !given.contains(&network.service_address));
    assert!(given.iter().all(|ip| network.cidr.contains(ip)));
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certain_address_is_given_to_one_vm_alone() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let ip = network.cidr.hosts().nth(100);
    let with =
        |ip| CreateVm { nics: vec![CreateNic { network_id: network.id, ip }], ..cluster.vm_body(&image, &network) };
    let vm = cluster.vm_as(&with(ip)).await?;
    assert_eq!(Some(vm.nics[0].ip), ip);
    let taken = cluster.api.post::<JobRef>("/v1/vms", &with(ip)).await.unwrap_err();
    assert!(matches!(taken.code(), Code::InUse | Code::Conflict | Code::InvalidRequest), "{taken}");
    for unfit in
        [network.gateway, Some(network.service_address), Some([192, 0, 2, 1].into()), Some(network.cidr.broadcast())]
    {
        let failure = cluster.api.post::<JobRef>("/v1/vms", &with(unfit)).await.unwrap_err();
        assert!(matches!(failure.code(), Code::InvalidRequest | Code::InUse), "{unfit:?}: {failure}");
    }
    cluster.remove_vm(vm.id).await?;
    cluster.vm_as(&with(ip)).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_make_no_sense_are_refused() -> anyhow::Result<()> {
    let (cluster, _, network) = ready().await?;
    let bad = [
        ("cidr", json!("10.0.0.0/30")),
        ("cidr", json!("8.8.8.0/24")),
        ("cidr", json!("10.0.0.0/7")),
        ("cidr", json!("10.0.0.0")),
        ("cidr", json!("::/64")),
        ("cidr", json!("127.0.0.0/24")),
        ("gateway", json!("10.250.1.1")),
        ("gateway", json!("10.250.0.255")),
        ("mtu", json!(100)),
        ("mtu", json!(90_000)),
        ("kind", json!("magic")),
        ("dns", json!(["not an address"])),
        ("name", json!("a; rm -rf /")),
        ("extra", json!(1)),
    ];
    for (field, value) in bad {
        let mut body = json!({ "name": "n", "kind": "nat", "cidr": "10.250.0.0/24" });
        body[field] = value.clone();
        let failure = cluster.api.post::<Network>("/v1/networks", &body).await.err();
        let failure = failure.unwrap_or_else(|| panic!("{field} = {value} was taken"));
        assert_eq!(failure.code(), Code::InvalidRequest, "{field} = {value}: {failure}");
    }
    let same = json!({ "name": "n", "kind": "nat", "cidr": network.cidr });
    assert_eq!(cluster.api.post::<Network>("/v1/networks", &same).await.unwrap_err().code(), Code::Conflict);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_in_use_stays_and_an_empty_one_goes_from_the_hosts_too() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let path = format!("/v1/networks/{}", network.id);
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    let refused = match cluster.api.delete::<JobRef>(&path).await {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(failure) => failure.code(),
    };
    assert_eq!(refused, Code::InUse);
    cluster.remove_vm(vm.id).await?;
    assert!(host.state().networks.contains(&network.id));
    let job: JobRef = cluster.api.delete(&path).await?;
    cluster.api.succeed(&job).await?;
    assert!(!host.state().networks.contains(&network.id));
    assert_eq!(cluster.api.get::<Network>(&path).await.unwrap_err().code(), Code::NotFound);
    cluster.stop().await
}
