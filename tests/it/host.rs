//! Hosts: joining, certificates, what happens when they die and come back, and what operators do to
//! VMs there behind Kring's back.

use std::sync::Arc;

use anyhow::Context;
use harness::client::Call;
use harness::cluster::Cluster;
use harness::sim::state::{Domain, Volume};
use harness::sim::{self, Sim, outbound, tls};
use harness::wait::until;
use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use shared::api::event::Event;
use shared::api::host::{Host, HostAdminState, HostConnection, UpdateHost};
use shared::api::job::JobRef;
use shared::api::page::Page;
use shared::api::vm::CreateVm;
use shared::error::Code;
use shared::id::{ImageId, NetworkId, ResourceId, VmId, VolumeId};
use shared::state::job::JobState;
use shared::state::vm::VmState;
use shared::units::Bytes;
use shared::wire::event::{AgentEvent, AgentEvents};
use shared::wire::host::Grade;
use shared::wire::vm::{PowerState, VmReport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::vm::ready;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_once_by_its_token_and_tells_what_it_has() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let token = cluster.api.join_token().await?;
    let host = cluster.sim.join(&token.token).await?;
    let row = cluster.connected(host.id, HostConnection::Connected).await?;
    assert_eq!((row.facts.cpus, row.facts.memory, row.name.clone()), (16, Bytes::gib(64), host.name.clone()));
    assert_eq!(row.capacity.vcpus_total, 160, "16 processors, overcommitted 10 times");
    let again = cluster.sim.join(&token.token).await.err().context("a token works once")?;
    assert!(again.to_string().contains("token"), "{again:#}");
    let (secret, fingerprint) = token.token.split_once('.').context("two parts")?;
    let forged = format!("{}.{fingerprint}", secret.chars().rev().collect::<String>());
    assert!(cluster.sim.join(&forged).await.is_err());
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM host").await?, 1);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_or_was_used_lets_nobody_in() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let app = cluster.app().context("the controller runs here")?;
    let (late, used) = (cluster.api.join_token().await?, cluster.api.join_token().await?);
    let first = cluster.sim.join(&used.token).await?;
    let refusal = async |token: &str, spec| -> anyhow::Result<String> {
        let refused = cluster.sim.join_as(token, spec).await.err().context("it is refused")?;
        let refused: shared::Error = refused.downcast()?;
        assert_eq!(refused.code, Code::Unauthenticated);
        Ok(refused.message)
    };
    let said = refusal(&used.token, cluster.sim.next_spec()?).await?;
    assert!(said.contains("was used by another host"), "{said}");
    // Days later neither works, also not for the host that used it.
    app.context().deps.clock.step(8 * 24 * 3600 * 1000);
    for spec in [cluster.sim.next_spec()?, sim::HostSpec { host_id: Some(first.id), ..cluster.sim.next_spec()? }] {
        let said = refusal(&late.token, spec).await?;
        assert!(said.contains("has expired"), "{said}");
    }
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM host").await?, 1);
    // An operator's clock that was wrong and is set right again changes nothing for who is in.
    app.context().deps.clock.step(-8 * 24 * 3600 * 1000);
    cluster.connected(first.id, HostConnection::Connected).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_off_by_an_hour_goes_on_and_says_so() -> anyhow::Result<()> {
    const HOUR: i64 = 3_600_000;
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    for (ahead, said) in [(HOUR, " s ahead of"), (-HOUR, " s behind"), (0, "")] {
        host.set_clock_ahead_ms(ahead);
        let row: Host = cluster.api.post(&format!("/v1/hosts/{}/reconnect", host.id), &json!({})).await?;
        assert_eq!(row.connection, HostConnection::Connected);
        let findings: Vec<_> = row.facts.findings.iter().filter(|finding| finding.what == "clock").collect();
        assert_eq!(findings.len(), usize::from(ahead != 0), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.text.contains(said) && finding.grade == Grade::Bad));
        assert_eq!(cluster.vm_do(vm.id, "reboot").await?.state, JobState::Succeeded);
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_is_refused_on_both_sides_until_the_host_joins_again() -> anyhow::Result<()> {
    let (mut cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    let clock = cluster.app().context("the controller runs here")?.context().deps.clock.clone();
    // Signed long ago: what a host has that was away for too long.
    const LONG: i64 = 120 * 24 * 3600 * 1000;
    clock.step(-LONG);
    let renewed = host.renew().await;
    clock.step(LONG);
    renewed?;
    let url = format!("{}/agent/v1/events", cluster.url);
    assert!(host.ask(Method::POST, &url, Vec::new()).await.is_err(), "TLS ends before anything is asked");
    assert!(host.renew().await.is_err(), "an expired certificate is not renewed");
    // Nor does the controller open a session with such a host. (One that is open already may be resumed for
    // a while, without certificates; a restart forgets them all.)
    cluster.restart().await?;
    let row = cluster.connected(host.id, HostConnection::Disconnected).await?;
    assert!(row.connection_reason.is_some());
    cluster.vm_becomes(vm.id, VmState::Unknown).await?;
    // With a new token it is the same host again.
    let token = cluster.api.join_token().await?;
    host.join_again(&token.token).await?;
    cluster.connected(host.id, HostConnection::Connected).await?;
    cluster.vm_becomes(vm.id, VmState::Running).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_takes_commands_from_controllers_only() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let (host, other) = (cluster.sim_host(vm.host_id)?, cluster.host().await?);
    let name = rustls::pki_types::ServerName::try_from(shared::wire::host_dns_name(host.id))?;
    let knock = async |identity: Option<&tls::Identity>| -> anyhow::Result<String> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in rustls::pki_types::CertificateDer::pem_slice_iter(host.identity().ca.as_bytes()) {
            roots.add(certificate?)?;
        }
        let trusting = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = identity.map_or_else(|| Arc::new(trusting.clone()), |id| tls::with_identity(&trusting, id));
        let tcp = TcpStream::connect(host.address).await?;
        let mut stream = TlsConnector::from(config).connect(name.clone(), tcp).await?;
        stream.write_all(b"GET /v1/inventory HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    };
    for identity in [None, Some(&*other.identity()), Some(&*host.identity())] {
        let answer = knock(identity).await;
        assert!(answer.is_err(), "{:?}: {answer:?}", identity.map(|id| id.host_id));
    }
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_names_the_controller_that_it_is_for() -> anyhow::Result<()> {
    let (ours, theirs) = (Cluster::start().await?, Cluster::start().await?);
    let token = ours.api.join_token().await?;
    assert!(theirs.sim.join(&token.token).await.is_err(), "TLS ends before the secret is sent");
    ours.sim.join(&token.token).await?;
    theirs.stop().await?;
    ours.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_another_host_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let first = cluster.host().await?;
    let spec = sim::HostSpec { name: first.name.clone(), ..cluster.sim.next_spec()? };
    let token = cluster.api.join_token().await?;
    let refused = cluster.sim.join_as(&token.token, spec).await.err().context("the name is taken")?;
    let refused: shared::Error = refused.downcast()?;
    assert_eq!(refused.code, Code::NameTaken);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_host_speaks_for_itself() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let other = cluster.host().await?;
    let url = format!("{}/agent/v1/events", cluster.url);
    let lie = VmReport { vm_id: vm.id, power: PowerState::Stopped, generation: 1 };
    let events = |host_id| AgentEvents { host_id, events: vec![AgentEvent::VmChanged { vm: lie.clone() }] };
    // Another host, as the one that has the VM, and as itself about a VM that it does not have.
    let owner = vm.host_id.context("it is on a host")?;
    let forged = other.ask(Method::POST, &url, serde_json::to_vec(&events(owner))?).await?;
    assert_eq!(forged.read::<()>().unwrap_err().code, Code::Forbidden);
    other.ask(Method::POST, &url, serde_json::to_vec(&events(other.id))?).await?;
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    // Nobody, and a token instead of a certificate.
    let nobody = cluster.api.with_token(None);
    for client in [&nobody, &cluster.api] {
        let answer = client.send(Call::new(Method::POST, "/agent/v1/events").json(&events(owner))).await?;
        assert_eq!(answer.status, 401, "{}", answer.text);
    }
    // A certificate of a host is no token for the API.
    let answer = other.ask(Method::GET, &format!("{}/v1/vms", cluster.url), Vec::new()).await?;
    assert_eq!(answer.status, 401);
    // A certificate of another authority.
    let stranger = Cluster::start().await?;
    let theirs = stranger.host().await?;
    assert!(theirs.ask(Method::POST, &url, Vec::new()).await.is_err());
    stranger.stop().await?;
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_works() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let host = cluster.sim.hosts().remove(0);
    let before = host.identity();
    host.renew().await?;
    assert_ne!(before.chain(), host.identity().chain());
    let vm = cluster.vm(&image, &network).await?;
    assert_eq!(vm.host_id, Some(host.id));
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_makes_its_vms_unknown_until_it_is_back() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let (running, stopped) = (cluster.vm(&image, &network).await?, cluster.vm(&image, &network).await?);
    cluster.vm_do(stopped.id, "stop").await?;
    let host = cluster.sim_host(running.host_id)?;
    host.down();
    let row = cluster.connected(host.id, HostConnection::Disconnected).await?;
    assert!(row.connection_reason.is_some());
    cluster.vm_becomes(running.id, VmState::Unknown).await?;
    assert_eq!(cluster.get_vm(running.id).await?.last_known_state, Some(VmState::Running), "told as what it is");
    assert_eq!(cluster.get_vm(stopped.id).await?.last_known_state, None);
    let refused = cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&image, &network)).await;
    let code = match refused {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(failure) => failure.code(),
    };
    assert_eq!(code, Code::NoHostFits);
    host.up();
    cluster.connected(host.id, HostConnection::Connected).await?;
    cluster.vm_becomes(running.id, VmState::Running).await?;
    assert_eq!(cluster.get_vm(running.id).await?.last_known_state, None);
    cluster.vm_becomes(stopped.id, VmState::Stopped).await?;
    cluster.vm(&image, &network).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_does_not_delay_another_one() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let frozen = cluster.sim.hosts().remove(0);
    let other = cluster.host().await?;
    frozen.freeze();
    cluster.connected(frozen.id, HostConnection::Disconnected).await?;
    let vm = cluster.vm(&image, &network).await?;
    assert_eq!(vm.host_id, Some(other.id));
    frozen.thaw();
    cluster.connected(frozen.id, HostConnection::Connected).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_restarted_has_no_running_vms() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm_as(&CreateVm { auto_start: false, ..cluster.vm_body(&image, &network) }).await?;
    cluster.sim_host(vm.host_id)?.reboot();
    cluster.vm_becomes(vm.id, VmState::Stopped).await?;
    cluster.vm_do(vm.id, "start").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_with_virsh_is_found_by_event_and_by_ping() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    for silent in [false, true] {
        // A silent host pushes no events: only the digest of its ping differs.
        host.set_silent(silent);
        let changes = [
            (PowerState::Stopped, VmState::Stopped),
            (PowerState::Running, VmState::Running),
            (PowerState::Paused, VmState::Paused),
            (PowerState::Running, VmState::Running),
            (PowerState::Crashed, VmState::Crashed),
            (PowerState::Running, VmState::Running),
        ];
        for (there, state) in changes {
            host.virsh(vm.id, there)?;
            cluster.vm_becomes(vm.id, state).await?;
        }
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_and_is_again_at_the_next_ping_is_found() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    cluster.set("host.ping_interval", json!(2)).await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    host.virsh(vm.id, PowerState::Stopped)?;
    cluster.vm_becomes(vm.id, VmState::Stopped).await?;
    let pings = host.pings.count();
    harness::wait::until("two pings", async || host.pings.count() >= pings + 2).await?;
    // Between two pings: an event tells that it runs, none tells that it has stopped once more.
    host.virsh(vm.id, PowerState::Running)?;
    cluster.vm_becomes(vm.id, VmState::Running).await?;
    host.set_silent(true);
    host.virsh(vm.id, PowerState::Stopped)?;
    cluster.vm_becomes(vm.id, VmState::Stopped).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undefined_domain_is_made_again_when_its_vm_starts() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    host.virsh_undefine(vm.id);
    cluster.vm_becomes(vm.id, VmState::Stopped).await?;
    cluster.vm_do(vm.id, "start").await?;
    assert_eq!(host.state().report(vm.id)?.power, PowerState::Running);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_data_is_unknown_and_never_off() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    host.state().libvirt_error = Some("it hangs".to_string());
    // A new host joins and is pinged meanwhile, so the pings of the first one have come to an end.
    cluster.host().await?;
    host.restart();
    cluster.host().await?;
    let state = cluster.get_vm(vm.id).await?.state;
    assert!(matches!(state, VmState::Running | VmState::Unknown), "{state}");
    host.state().libvirt_error = None;
    cluster.vm_becomes(vm.id, VmState::Running).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_no_row_is_told_and_only_removed_when_that_is_wished() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    let (stray_vm, stray_volume) = (VmId::new(), VolumeId::new());
    let (stray_image, stray_network) = (ImageId::new(), NetworkId::new());
    {
        let mut state = host.state();
        let volume = Volume { base: None, ..state.volumes[&vm.root_volume_id].clone() };
        state.volumes.insert(stray_volume, volume);
        state.images.insert(stray_image, harness::sim::plausible_image("stray"));
        state.networks.insert(stray_network);
        state.foreign.insert("somebody-elses".to_string());
    }
    let domain = Domain {
        name: "stray".to_string(),
        power: PowerState::Running,
        generation: 1,
        vcpus: 1,
        memory: Bytes::mib(64),
        disks: Vec::new(),
        networks: Vec::new(),
    };
    host.plant(stray_vm, domain);
    let compare = async || {
        cluster.api.post::<serde_json::Value>(&format!("/v1/hosts/{}/reconnect", host.id), &json!({})).await?;
        cluster.connected(host.id, HostConnection::Connected).await
    };
    compare().await?;
    // Caches of nothing go; what may be somebody's data stays, and is told.
    until("caches of nothing are removed", async || {
        let state = host.state();
        !state.images.contains_key(&stray_image) && !state.networks.contains(&stray_network)
    })
    .await?;
    until("strays are told", async || {
        let page: Result<Page<Event>, _> = cluster.api.get("/v1/events?limit=1000").await;
        let told: Vec<_> = page.map(|page| page.items).unwrap_or_default();
        [stray_vm.uuid(), stray_volume.uuid()].iter().all(|id| {
            let text = id.to_string();
            told.iter()
                .any(|e| e.path.contains("orphan") && (e.resource_id == *id || e.content.to_string().contains(&text)))
        })
    })
    .await?;
    assert!(host.state().vms.contains_key(&stray_vm));
    assert!(host.state().volumes.contains_key(&stray_volume));
    cluster.set("host.remove_orphans", true.into()).await?;
    compare().await?;
    until("strays are removed", async || {
        let state = host.state();
        !state.vms.contains_key(&stray_vm) && !state.volumes.contains_key(&stray_volume)
    })
    .await?;
    assert!(host.state().foreign.contains("somebody-elses"), "what is not of Kring is never touched");
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_vms_stays_and_an_empty_one_goes_with_its_certificate() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    let path = format!("/v1/hosts/{}", host.id);
    assert_eq!(cluster.api.delete::<()>(&path).await.unwrap_err().code(), Code::InUse);
    cluster.remove_vm(vm.id).await?;
    let gone = cluster.api.send(Call::new(Method::DELETE, &path)).await?;
    assert!(gone.status < 300, "{}", gone.text);
    assert_eq!(cluster.api.get::<Host>(&path).await.unwrap_err().code(), Code::NotFound);
    let renew = host.renew().await;
    assert!(renew.is_err(), "a certificate of a host that was deleted is not renewed");
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_disabled_or_in_maintenance_takes_no_new_vms() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/hosts/{}", vm.host_id.context("it is on a host")?);
    for state in [HostAdminState::Disabled, HostAdminState::Maintenance] {
        let update = UpdateHost { name: None, admin_state: Some(state) };
        assert_eq!(cluster.api.patch::<Host>(&path, &update).await?.admin_state, state);
        let code = match cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&image, &network)).await {
            Ok(job) => cluster.api.fail(&job).await?,
            Err(failure) => failure.code(),
        };
        assert_eq!(code, Code::NoHostFits, "{state}");
    }
    let update = UpdateHost { name: None, admin_state: Some(HostAdminState::Enabled) };
    cluster.api.patch::<Host>(&path, &update).await?;
    cluster.vm(&image, &network).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reinstalled_host_takes_up_its_id() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let host = cluster.host().await?;
    let spec = sim::HostSpec { host_id: Some(host.id), name: host.name.clone(), ..cluster.sim.next_spec()? };
    let second = Sim::new(sim::Options::new(&cluster.url));
    host.down();
    cluster.connected(host.id, HostConnection::Disconnected).await?;
    let token = cluster.api.join_token().await?;
    let again = second.join_as(&token.token, spec).await?;
    assert_eq!(again.id, host.id);
    until("the reinstalled host is connected", async || {
        let row: Result<Host, _> = cluster.api.get(&format!("/v1/hosts/{}", host.id)).await;
        row.is_ok_and(|row| row.connection == HostConnection::Connected && row.address == again.address.to_string())
    })
    .await?;
    second.shutdown().await;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_makes_no_sense_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let token = cluster.api.join_token().await?.token;
    let client = std::sync::Arc::new(tls::join_config(tls::fingerprint_of_token(&token)?)?);
    let (_, csr) = tls::key_and_request()?;
    let good = json!({ "token": token, "name": "a", "csr": csr, "port": 1, "facts": {} });
    let bad = [
        ("name", json!("../../a"), 400),
        ("csr", json!("-----BEGIN NONSENSE-----"), 400),
        ("csr", json!(""), 400),
        ("address", json!("no address; rm -rf /"), 400),
        ("surprise", json!(1), 400),
        ("token", json!(""), 401),
        ("token", json!("x".repeat(100_000)), 401),
    ];
    let url = format!("{}/agent/v1/join", cluster.url);
    for (field, value, status) in bad {
        let mut body = good.clone();
        body[field] = value;
        let answer = outbound::send(&client, Method::POST, &url, serde_json::to_vec(&body)?).await?;
        assert_eq!(answer.status.as_u16(), status, "{field}: {}", String::from_utf8_lossy(&answer.body));
    }
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM host").await?, 0);
    cluster.stop().await
}
