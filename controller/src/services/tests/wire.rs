//! Every message that a service understands, written and read as it would be between two controllers.

use serde_json::{Value, json};
use shared::wire::host::HostFacts;

use crate::services::testing::systems;

const ID: &str = "01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11";
const OTHER: &str = "01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e12";

/// A body of each message, with every field that it can have.
fn sample(name: &str) -> Option<Value> {
    let with = |body: Value| json!({ "id": ID, "body": body });
    let report = json!({ "vm_id": ID, "power": "running", "generation": 7 });
    let params = json!({ "q": "name = a", "sort": "-id", "limit": 10, "cursor": "c", "fields": "id", "count": true });
    Some(match name {
        "account.Authenticate" => json!({ "secret_sha256": "ab" }),
        "account.CreateAccount" => with(json!({ "id": ID, "name": "a" })),
        "account.CreateToken" => {
            with(json!({ "name": "t", "account_id": ID, "expires_at": "2026-11-22T01:02:03.000Z" }))
        }
        "cluster.CreateCluster" => with(json!({
            "id": ID, "name": "c", "zone_id": OTHER, "description": "", "cpu_overcommit": 2.5, "memory_overcommit": 1.0,
        })),
        "controller.ActivateController" | "controller.DrainController" | "controller.GetOwnership" => {
            json!({ "id": ID })
        }
        "controller.TakeUpJob" => json!({ "id": ID, "resource": OTHER }),
        "event.NextEvents" => json!({ "after": 7, "max": 10 }),
        "host.CreateJoinToken" => with(json!({ "cluster_id": OTHER, "ttl_s": 60 })),
        "host.HostEvents" => json!({ "id": ID, "events": [
            { "kind": "vm_changed", "vm": report }, { "kind": "vm_gone", "vm_id": ID }, { "kind": "agent_started" },
        ] }),
        "host.HostMissed" => json!({ "id": ID, "reason": "no answer" }),
        "host.JoinHost" => json!({ "id": ID, "from": "10.0.0.1", "join": {
            "token": "t", "name": "h", "csr": "c", "port": 7443, "address": "10.0.0.1", "host_id": ID,
            "facts": serde_json::to_value(HostFacts::default()).ok()?,
        } }),
        "host.RenewHost" => json!({ "id": ID, "renew": { "csr": "c" } }),
        "host.UpdateHost" => with(json!({ "name": "h", "admin_state": "disabled" })),
        "image.CreateImage" => with(json!({
            "id": ID, "name": "i", "source": { "kind": "url", "url": "http://a/b" }, "sha256": "ab", "format": "qcow2",
            "firmware": "uefi",
        })),
        "image.FinishUpload" => with(json!({ "upload": OTHER, "size": 10, "sha256": "ab" })),
        "instance_type.CreateInstanceType" => with(json!({ "id": ID, "name": "t", "vcpus": 1, "memory": 1 })),
        "job.WatchJob" => json!({ "id": ID }),
        "job.StopJob" => json!({ "id": ID, "resource": OTHER }),
        "network.CreateNetwork" => with(json!({
            "id": ID, "name": "n", "kind": "nat", "cidr": "10.0.0.0/24", "cluster_id": OTHER, "gateway": "10.0.0.1",
            "dns": ["10.0.0.2"], "mtu": 1500, "uplink": "eth1", "vlan": 7,
        })),
        "setting.GetSetting" => json!({ "key": "vm.stop_timeout" }),
        "setting.ListSettings" => json!({}),
        "setting.UpdateSetting" => json!({ "key": "vm.stop_timeout", "body": { "value": 5 } }),
        "storage.CreateStorage" => {
            with(json!({ "id": ID, "name": "s", "kind": "local", "cluster_id": OTHER, "path": "/srv" }))
        }
        "vm.AttachVolumeToVm" | "vm.DetachVolumeFromVm" => json!({ "vm": ID, "volume": OTHER }),
        "vm.CreateVm" | "vm.PlanVm" => with(json!({
            "id": ID, "name": "v", "image_id": OTHER, "instance_type_id": OTHER, "vcpus": 1, "memory": 1, "root_size": 1,
            "nics": [{ "network_id": OTHER, "ip": "10.0.0.9" }], "hostname": "h", "ssh_keys": ["k"], "user_data": "u",
            "host_id": OTHER, "storage_id": OTHER, "start": false, "auto_start": false,
        })),
        "vm.GetConsoleLog" => json!({ "id": ID, "range": { "offset": 5, "max": 10 } }),
        "vm.RouteConsole" => json!({ "id": ID, "kind": "vnc" }),
        "vm.StopVm" | "vm.RebootVm" => with(json!({ "mode": "force", "timeout_s": 5 })),
        "vm.UpdateVm" => with(json!({ "name": "v", "vcpus": 1, "memory": 1, "auto_start": false })),
        "vm.MigrateVm" => with(json!({ "host_id": OTHER })),
        "vm.VmObserved" => json!({ "id": ID, "host_id": OTHER, "report": report, "as_of": 3, "rebooted": true }),
        "vm.VmLost" => json!({ "id": ID, "host_id": OTHER }),
        "volume.AttachVolume" => with(json!({ "vm_id": OTHER })),
        "volume.CreateVolume" => {
            with(json!({ "id": ID, "name": "v", "size": 1, "format": "raw", "storage_id": OTHER }))
        }
        "zone.CreateZone" => with(json!({ "id": ID, "name": "z", "description": "d" })),
        _ if name.contains(".List") => json!({ "params": params }),
        _ if [".Get", ".Delete", ".Reconnect", ".Compare", ".Cancel", ".Wait", ".Revoke"]
            .iter()
            .any(|v| name.contains(v)) =>
        {
            json!({ "id": ID })
        }
        "host.MaintainHost"
        | "vm.StartVm"
        | "vm.PauseVm"
        | "vm.ResumeVm"
        | "vm.RecoverVm"
        | "vm.ExpungeVm"
        | "volume.DetachVolume" => {
            json!({ "id": ID })
        }
        _ => return None,
    })
}

#[tokio::test]
async fn every_message_survives_the_wire() {
    let system = systems().await.remove(0);
    let names: Vec<_> = system.bus.services().flat_map(|(_, service)| service.messages.iter().copied()).collect();
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        let sample = sample(name).unwrap_or_else(|| panic!("{name} has no sample here: add one"));
        let read = system.bus.round_trip(name, &sample).unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
        assert_eq!(read, sample, "{name}");
    }
}
