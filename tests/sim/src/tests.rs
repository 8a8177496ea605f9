//! The simulator against the controller's own agent client, without a controller: both sides must
//! mean the same by the wire.

use std::sync::Arc;
use std::time::Duration;

use controller::agent_client::{Agents, HostRef, NoProgress, Order};
use controller::clock::Clock;
use controller::ring::Ring;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::api::image::Firmware;
use shared::api::vm::StopMode;
use shared::id::{ControllerId, ImageId, StorageId, VmId, VolumeId};
use shared::wire::host::{InspectHost, StorageSpec};
use shared::wire::image::{DeleteImage, ImageOrigin, ImageSpec};
use shared::wire::vm::{CloudInit, DeleteVm, DiskSpec, EnsureVm, StopVm, VmSpec};
use shared::wire::volume::{DeleteVolume, VolumeSpec};
use shared::wire::{AgentCommand, CONTROLLER_DNS_NAME, host_dns_name};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::history::Fate;
use super::*;
use shared::{Code, Error};

struct Bench {
    sim: Sim,
    host: Arc<Host>,
    agents: Arc<Agents>,
    target: HostRef,
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(ca: &Ca, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn client(ca: &Ca, name: &str) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    let (certificate, key) = issue(ca, name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}

async fn bench(ca: &Ca) -> Bench {
    tls::install_provider();
    let sim = Sim::new(Options::new("https://127.0.0.1:1"));
    let spec = sim.next_spec().unwrap();
    let id = HostId::new();
    let (certificate, key) = issue(ca, &host_dns_name(id));
    let identity = Identity::new(id, &certificate, ca.pem().into(), &key).unwrap();
    let address = sim.next_address().await.unwrap();
    let host = sim.serve(spec, identity, address).unwrap();
    let agents = agents(client(ca, CONTROLLER_DNS_NAME));
    let target = HostRef { id, address: host.address.to_string() };
    Bench { sim, host, agents, target }
}

fn agents(tls: Arc<rustls::ClientConfig>) -> Arc<Agents> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let ring = Ring::new(ControllerId::new());
    Agents::new(tls, "https://127.0.0.1:1".to_string(), tasks, stop, Clock::default(), ring)
}

fn order(generation: u64) -> Order {
    Order::once(generation, Instant::now() + Duration::from_secs(30))
}

fn vm(start: bool) -> EnsureVm {
    let storage =
        StorageSpec { storage_id: StorageId::new(), path: "/var/lib/kring/volumes".into(), kind: Default::default() };
    let base = ImageSpec {
        image_id: ImageId::new(),
        origin: ImageOrigin::Url { url: "http://images.example/a.qcow2".into() },
        sha256: None,
        format: None,
        max_size: Bytes::gib(1),
        max_virtual_size: Bytes::gib(10),
    };
    let volume = VolumeSpec {
        volume_id: VolumeId::new(),
        storage,
        format: DiskFormat::Qcow2,
        size: Bytes::gib(2),
        base: Some(base),
    };
    let vm = VmSpec {
        vm_id: VmId::new(),
        name: "a".into(),
        vcpus: 1,
        memory: Bytes::mib(128),
        firmware: Firmware::Bios,
        disks: vec![DiskSpec { volume, device: "vda".into() }],
        nics: Vec::new(),
        cloud_init: CloudInit::default(),
    };
    EnsureVm { vm, start }
}

impl Bench {
    async fn send<C: AgentCommand>(&self, order: Order, command: &C) -> Result<C::Reply, Error> {
        self.agents.command(&self.target, order, command, &NoProgress).await
    }
}

#[tokio::test]
async fn a_vm_comes_and_goes_and_what_is_used_is_kept() {
    let bench = bench(&authority()).await;
    let ensure = vm(true);
    let report = bench.send(order(3), &ensure).await.unwrap();
    assert_eq!((report.power.as_str(), report.generation), ("running", 3));
    let pong = bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    assert_eq!(pong.digest, Some(shared::wire::vm::digest([(&report.vm_id, &report.power)])));

    let volume = &ensure.vm.disks[0].volume;
    let delete_volume = DeleteVolume { volume_id: volume.volume_id, storage: volume.storage.clone() };
    let delete_image = DeleteImage { image_id: volume.base.as_ref().unwrap().image_id, storages: vec![] };
    assert_eq!(bench.send(order(3), &delete_volume).await.unwrap_err().code, Code::InUse);
    assert_eq!(bench.send(order(3), &delete_image).await.unwrap_err().code, Code::InUse);

    for _ in 0..2 {
        bench.send(order(4), &DeleteVm { vm_id: report.vm_id }).await.unwrap();
    }
    let inspect = InspectHost { host_id: bench.target.id, storages: vec![volume.storage.clone()] };
    let inventory = bench.send(order(4), &inspect).await.unwrap();
    assert_eq!((inventory.vms.len(), inventory.volumes.len(), inventory.images.len()), (0, 1, 1));
    for _ in 0..2 {
        bench.send(order(4), &delete_volume).await.unwrap();
        bench.send(order(4), &delete_image).await.unwrap();
    }
    assert_eq!(*bench.host.state(), state::State::default());
    bench.sim.shutdown().await;
}

#[tokio::test]
async fn a_stale_generation_is_refused_also_after_a_restart() {
    let bench = bench(&authority()).await;
    let ensure = vm(true);
    bench.send(order(7), &ensure).await.unwrap();
    let stop = StopVm { vm_id: ensure.vm.vm_id, mode: StopMode::Force, timeout_s: 1 };
    assert_eq!(bench.send(order(6), &stop).await.unwrap_err().code, Code::StaleGeneration);
    bench.host.restart();
    assert_eq!(bench.send(order(6), &stop).await.unwrap_err().code, Code::StaleGeneration);
    assert_eq!(bench.send(order(7), &stop).await.unwrap().power.as_str(), "stopped");
}

#[tokio::test]
async fn a_repeated_task_is_not_run_twice() {
    let bench = bench(&authority()).await;
    let ensure = vm(true);
    let order = order(1);
    bench.send(order.clone(), &ensure).await.unwrap();
    bench.host.virsh(ensure.vm.vm_id, shared::wire::vm::PowerState::Stopped).unwrap();
    assert_eq!(bench.send(order, &ensure).await.unwrap().power.as_str(), "running", "the outcome of the first time");
    assert_eq!(bench.host.state().report(ensure.vm.vm_id).unwrap().power.as_str(), "stopped");
}

#[tokio::test]
async fn faults_hit_where_they_should() {
    let bench = bench(&authority()).await;
    let ensure = vm(false);
    let faults = bench.sim.faults();
    faults.add(Fault::new("vm/ensure", What::FailHalfway { code: Code::HostFailed }).times(1));
    assert_eq!(bench.send(order(1), &ensure).await.unwrap_err().code, Code::HostFailed);
    let half = bench.host.state().clone();
    assert_eq!((half.vms.len(), half.volumes.len()), (0, 1));
    // The first one breaks the connection off that was kept, which is replaced.
    faults.add(Fault::new("vm/ensure", What::DropAfter).times(2));
    assert_eq!(bench.send(order(1), &ensure).await.unwrap_err().code, Code::HostUnreachable);
    assert_eq!(bench.host.state().vms.len(), 1);
    faults.add(Fault::new("ping", What::DropBefore));
    assert!(bench.agents.ping(&bench.target, Duration::from_secs(10)).await.is_err());
    faults.clear();
    bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    bench.host.down();
    assert!(bench.agents.ping(&bench.target, Duration::from_secs(10)).await.is_err());
    bench.host.up();
    bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn only_a_controller_of_the_same_authority_is_let_in() {
    let ca = authority();
    let bench = bench(&ca).await;
    let timeout = Duration::from_secs(10);
    let other_host = agents(client(&ca, &host_dns_name(HostId::new())));
    assert!(other_host.ping(&bench.target, timeout).await.is_err());
    let other_ca = agents(client(&authority(), CONTROLLER_DNS_NAME));
    assert!(other_ca.ping(&bench.target, timeout).await.is_err());
    bench.agents.ping(&bench.target, timeout).await.unwrap();
}

#[tokio::test]
async fn a_host_knows_the_controllers_and_repeats_go_to_the_next_owner() {
    let bench = bench(&authority()).await;
    let (own, list) =
        ("https://127.0.0.1:1".to_string(), ["https://127.0.0.1:2".to_string(), "https://127.0.0.1:3".to_string()]);
    bench.agents.set_others(&[&list]);
    bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    assert_eq!(bench.host.controllers(), [vec![own], list.to_vec()].concat());
    let (first, ensure) = (order(3), vm(true));
    bench.send(first.clone(), &ensure).await.unwrap();
    let again = bench.send(Order { generation: 4, ..first.clone() }, &ensure).await.unwrap();
    assert_eq!(again.power.as_str(), "running");
    assert_eq!(bench.send(first, &ensure).await.unwrap_err().code, Code::StaleGeneration);
}

#[tokio::test]
async fn what_was_sent_before_the_agent_was_started_again_is_refused_and_sent_once_more() {
    let bench = bench(&authority()).await;
    bench.sim.history().record();
    let before = Some(bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap().agent_id);
    bench.host.restart();
    let ensure = vm(true);
    bench.send(Order { agent_id: before, ..order(3) }, &ensure).await.unwrap();
    let fates: Vec<Fate> = bench.sim.history().actions().iter().map(|action| action.fate).collect();
    assert_eq!(fates, [Fate::ForAnother, Fate::Accepted]);
    // However often it is restarted while it works, within reason.
    let restarts = bench.sim.faults().add(Fault::new("vm/ensure", What::RestartHalfway).times(3));
    bench.send(Order { agent_id: before, ..order(3) }, &vm(true)).await.unwrap();
    assert_eq!(bench.sim.faults().remove(restarts), 3);
    bench.sim.faults().add(Fault::new("vm/ensure", What::RestartHalfway));
    let error = bench.send(Order { agent_id: before, ..order(3) }, &vm(true)).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (Code::HostFailed, "the agent on the host keeps restarting"));
    bench.sim.faults().clear();
}

#[tokio::test]
async fn what_happens_to_hosts_is_said_at_the_control_port() {
    let bench = bench(&authority()).await;
    let sim = Arc::new(bench.sim);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    control::listen(&sim, listener);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |method: http::Method, path: &str, body: &str| {
        let answer = client.request(method, format!("{base}{path}")).body(body.to_string()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let page = client.post(format!("{base}/hosts/*/wipe")).header("origin", "http://example.org").send().await.unwrap();
    assert_eq!(page.status(), 403, "no page in a browser may do that");
    let (get, put, post, delete) = (http::Method::GET, http::Method::PUT, http::Method::POST, http::Method::DELETE);
    let name = format!("/hosts/{}", bench.host.name);
    let (status, hosts) = ask(get.clone(), "/hosts", "").await;
    assert_eq!((status, &hosts[0]["id"]), (200, &serde_json::to_value(bench.host.id).unwrap()));

    let bad = r#"{"libvirt_error": "gone", "available": 5, "clock_ahead_ms": -3600000, "silent": true}"#;
    assert_eq!(ask(put.clone(), &name, bad).await.0, 200);
    let send = async |order: Order, command: &EnsureVm| {
        bench.agents.command(&bench.target, order, command, &NoProgress).await.map(drop).map_err(|error| error.code)
    };
    assert_eq!(send(order(1), &vm(true)).await, Err(Code::HostFailed));
    assert!(bench.host.facts().clock_ms < shared::time::Timestamp::now().ms() - 3_000_000);
    let pong = bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    assert_eq!((pong.digest, pong.libvirt_error.as_deref()), (None, Some("gone")));
    // Of every host, and what is left out stays.
    assert_eq!(ask(put.clone(), "/hosts/*", r#"{"libvirt_error": ""}"#).await.0, 200);
    assert_eq!(send(order(1), &vm(true)).await, Err(Code::NoSpace));
    assert_eq!(ask(put.clone(), &name, r#"{"available": 1099511627776}"#).await.0, 200);
    assert_eq!(send(order(1), &vm(true)).await, Ok(()));
    assert_eq!(ask(put, &name, r#"{"avialable": 1}"#).await.0, 400);

    let fault = r#"{"path": "vm/ensure", "hosts": 1.0, "what": {"kind": "fail", "code": "host_failed"}}"#;
    let (_, added) = ask(post.clone(), "/faults", fault).await;
    assert_eq!(send(order(1), &vm(true)).await, Err(Code::HostFailed));
    let (_, removed) = ask(delete, &format!("/faults/{}", added["id"]), "").await;
    assert_eq!(removed["hits"], 1);
    assert_eq!(ask(post.clone(), "/hosts/*/down", "").await.0, 200);
    assert_eq!(send(order(1), &vm(true)).await, Err(Code::HostUnreachable));
    assert_eq!(ask(post.clone(), &format!("{name}/up"), "").await.0, 200);
    bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    assert_eq!(send(order(1), &vm(true)).await, Ok(()));
    assert_eq!(ask(post, "/hosts/nobody/up", "").await.0, 404);
    let (_, all) = ask(get, &name, "").await;
    assert_eq!(all["vms"].as_object().map(serde_json::Map::len), Some(2), "{all}");
}

#[tokio::test]
async fn commands_to_a_host_that_is_gone_fail_at_once_until_it_answers_a_ping() {
    let bench = bench(&authority()).await;
    bench.agents.set_limits(controller::agent_client::HostLimits { commands: 4, failures: 3 });
    let ensure = vm(true);
    bench.host.down();
    for _ in 0..3 {
        assert_eq!(bench.send(order(1), &ensure).await.unwrap_err().code, Code::HostUnreachable);
    }
    let refused = bench.send(order(1), &ensure).await.unwrap_err();
    assert_eq!(refused.code, Code::HostUnreachable);
    assert!(refused.message.contains("3 times in a row"), "{}", refused.message);
    assert_eq!((bench.agents.figures().open, bench.agents.figures().refused), (1, 1));
    bench.host.up();
    bench.agents.ping(&bench.target, Duration::from_secs(10)).await.unwrap();
    assert_eq!(bench.agents.figures().open, 0);
    assert_eq!(bench.send(order(1), &ensure).await.unwrap().power.as_str(), "running");
}
