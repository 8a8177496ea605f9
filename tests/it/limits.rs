//! What is too much is refused at once, with `503` and `Retry-After`; what was accepted before is done all
//! the same, and afterwards everything is as it was: requests in flight, a service's share of the bus, one
//! resource's queue, the commands of one host, a host that does not answer, and the files of a process.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::{join, join_all, try_join_all};
use harness::client::{Call, Client, Reply};
use harness::cluster::{Cluster, Setup};
use harness::cmd;
use harness::sim::{Fault, What, tls};
use harness::wait::{eventually, until};
use reqwest::Method;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use shared::api::host::HostConnection;
use shared::api::job::{Job, JobRef, JobState};
use shared::api::vm::Vm;
use shared::error::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::vm::ready_with;

/// Requests that the controller of these tests works on at a time.
const AT_A_TIME: usize = 6;

/// Checks that this is how a user is told to come again.
fn is_refusal(reply: &Reply) -> anyhow::Result<String> {
    let retry_after = reply.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let kind = reply.headers.get("content-type").and_then(|value| value.to_str().ok());
    anyhow::ensure!(reply.status == 503, "{}: {}", reply.status, reply.text);
    anyhow::ensure!(retry_after.is_some_and(|seconds| seconds > 0), "{:?}", reply.headers);
    anyhow::ensure!(kind == Some("application/problem+json"), "{kind:?}");
    Ok(reply.json["detail"].as_str().context("a refusal says why")?.to_string())
}

/// A figure of the controller.
async fn figure(api: &Client, name: &str) -> anyhow::Result<u64> {
    let text = api.send(Call::new(Method::GET, "/metrics")).await?.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
    Ok(line.trim().parse::<f64>()? as u64)
}

/// A request whose body is not sent yet: it is being worked on.
struct Begun {
    stream: TlsStream<TcpStream>,
    body: String,
}

impl Begun {
    async fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let config = tls::client_config(&cluster.sim.hosts().first().context("a host")?.identity().ca)?;
        let tcp = TcpStream::connect(cluster.url.trim_start_matches("https://")).await?;
        let name = ServerName::try_from(shared::wire::CONTROLLER_DNS_NAME)?;
        let mut stream = TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await?;
        let body = json!({ "name": cluster.name("zone") }).to_string();
        let head = format!(
            "POST /v1/zones HTTP/1.1\r\nhost: controller.kring\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            cluster.api.token().context("a token")?,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        Ok(Self { stream, body })
    }

    /// Sends the body and reads the first line of the answer.
    async fn finish(mut self) -> anyhow::Result<String> {
        self.stream.write_all(self.body.as_bytes()).await?;
        let mut answer = Vec::new();
        // The end of the connection is not always told in order.
        let _ = self.stream.read_to_end(&mut answer).await;
        Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_string())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_bound_are_shed_and_those_before_are_answered() -> anyhow::Result<()> {
    let api = format!("max_in_flight = {AT_A_TIME}");
    let (cluster, image, network) = ready_with(Setup { api, deferred: 0.5, ..Setup::default() }).await?;
    let (mut begun, list) = (Vec::new(), || Call::new(Method::GET, "/v1/zones"));
    // A host may have one of the places for a moment; then one more is begun.
    let shed = eventually("all places are taken", async || {
        begun.push(Begun::new(&cluster).await?);
        is_refusal(&cluster.api.send(list()).await?)
    })
    .await?;
    assert!(shed.contains("too many requests"), "{shed}");
    // Whoever asks whether the process is well hears it all the same.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(cluster.api.send(Call::new(Method::GET, path)).await?.status, 200, "{path}");
    }
    let answers = try_join_all(begun.into_iter().map(Begun::finish)).await?;
    let (made, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|line| line.starts_with("HTTP/1.1 201"));
    assert!(made.len() >= AT_A_TIME - 2, "{answers:?}");
    assert!(refused.iter().all(|line| line.starts_with("HTTP/1.1 503")), "{answers:?}");
    until("requests are taken again", async || cluster.api.send(list()).await.is_ok_and(|r| r.status == 200)).await?;

    // Many more than that at once: each is accepted, or told when to come again.
    let bodies: Vec<_> = (0..10 * AT_A_TIME).map(|_| cluster.vm_body(&image, &network)).collect();
    let replies = join_all(bodies.iter().map(|body| cluster.api.send(Call::new(Method::POST, "/v1/vms").json(body))));
    let mut accepted = Vec::new();
    for reply in replies.await {
        let reply = reply?;
        match reply.status {
            202 => accepted.push(reply.read::<JobRef>()?),
            _ => assert!(is_refusal(&reply)?.contains("too many requests")),
        }
    }
    assert!(accepted.len() >= AT_A_TIME, "{} were accepted", accepted.len());
    for job in &accepted {
        assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Succeeded);
    }
    assert_eq!(cluster.sim.hosts()[0].state().vms.len(), accepted.len());
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_its_share_refuses_more_and_answers_what_it_has() -> anyhow::Result<()> {
    let bus = "service_limits = { job = 3 }".to_string();
    let (cluster, image, network) = ready_with(Setup { bus, ..Setup::default() }).await?;
    let held = cluster.sim.faults().add(Fault::new("vm/ensure", What::Held));
    let job: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(&image, &network)).await?;
    let path = format!("/v1/jobs/{}", job.job_id);
    // One that comes while another one is looked for may be refused in its place: it comes again.
    let waiting = try_join_all((0..3).map(|_| {
        eventually("it may wait", async || {
            let reply = cluster.api.send(Call::new(Method::GET, &path).wait(60)).await?;
            anyhow::ensure!(reply.status != 503, "{}", reply.text);
            Ok(reply)
        })
    }));
    let more = async {
        let said = eventually("the service has its share", async || {
            is_refusal(&cluster.api.send(Call::new(Method::GET, &path)).await?)
        })
        .await?;
        // The others are not held up.
        let vm: Vm = cluster.api.get(&format!("/v1/vms/{}", job.resource.id)).await?;
        cluster.sim.faults().remove(held);
        anyhow::Ok((said, vm))
    };
    let (waited, refused) = join(waiting, more).await;
    let (said, _) = refused?;
    assert!(said.contains("too much to do"), "{said}");
    for reply in waited? {
        assert_eq!(reply.read::<Job>()?.state, JobState::Succeeded);
    }
    until("it answers again", async || cluster.api.get::<Job>(&path).await.is_ok()).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_whose_queue_is_full_refuses_and_does_what_waits() -> anyhow::Result<()> {
    const WAITING: usize = 2;
    let bus = format!("max_per_resource = {WAITING}");
    let (cluster, image, network) = ready_with(Setup { bus, ..Setup::default() }).await?;
    let (vm, other) = (cluster.vm(&image, &network).await?, cluster.vm(&image, &network).await?);
    cluster.vm_do(other.id, "pause").await?;
    let path = format!("/v1/vms/{}", vm.id);
    // Again when the writes gave up before the test had seen all: an embedded database does not wait for ever.
    eventually("what waits is done, and the rest refused", async || {
        let bodies: Vec<Value> = (0..WAITING + 4).map(|_| json!({ "name": cluster.name("renamed") })).collect();
        let held = cluster.database.hold_vms().await?;
        let (refusals, seen) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::Ordering::Relaxed);
        let sent = join_all(bodies.iter().map(async |body| {
            let reply = cluster.api.send(Call::new(Method::PATCH, &path).json(body)).await?;
            if is_refusal(&reply).is_ok_and(|said| said.contains("already wait for this resource")) {
                refusals.fetch_add(1, seen);
                return anyhow::Ok(None);
            }
            Ok(Some(reply))
        }));
        let release = async {
            // One is being worked on, two wait.
            until("the others are refused", async || refusals.load(seen) == bodies.len() - WAITING - 1).await?;
            // Another VM can be looked at meanwhile.
            cluster.get_vm(other.id).await?;
            anyhow::Ok(held.rollback().await?)
        };
        let (replies, released) = join(sent, release).await;
        released?;
        for reply in replies.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten() {
            anyhow::ensure!(reply.status == 200, "{}: {}", reply.status, reply.text);
        }
        Ok(())
    })
    .await?;
    let body = json!({ "name": cluster.name("last") });
    assert_eq!(cluster.api.send(Call::new(Method::PATCH, &path).json(&body)).await?.status, 200);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_given_so_many_commands_at_a_time_and_all_are_done() -> anyhow::Result<()> {
    let config = "[hosts]\nmax_commands = 2".to_string();
    let (cluster, image, network) = ready_with(Setup { config, ..Setup::default() }).await?;
    // It has the image and the network from now on.
    cluster.vm(&image, &network).await?;
    cluster.sim.history().record();
    let hang = cluster.sim.faults().add(Fault::new("vm/ensure", What::Hang));
    let jobs = join_all(
        (0..6).map(|_| async { cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&image, &network)).await }),
    );
    let jobs = jobs.await.into_iter().collect::<Result<Vec<_>, _>>()?;
    eventually("all have a place or wait for one", async || {
        let commands = figure(&cluster.api, "kring_host_commands").await?;
        // The host may be inspected as well, for the first VM's sake.
        anyhow::ensure!(commands >= 6, "{commands}");
        Ok(())
    })
    .await?;
    until("two are on the host", async || cluster.sim.faults().hits(hang) >= 2).await?;
    assert_eq!(cluster.sim.faults().remove(hang), 2, "the others wait here");
    let (hanging, waiting) = eventually("both are told of", async || {
        let there: Vec<_> = cluster.sim.history().actions().iter().map(|action| action.resource).collect();
        let all: (Vec<_>, Vec<_>) = jobs.iter().partition(|job| there.contains(&job.resource.id));
        anyhow::ensure!((all.0.len(), all.1.len()) == (2, 4), "{} are there", all.0.len());
        Ok(all)
    })
    .await?;
    // When those two give their places up, the others have their turn.
    for job in hanging {
        cluster.api.post::<Job>(&format!("/v1/jobs/{}/cancel", job.job_id), &json!({})).await?;
        assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Cancelled);
    }
    for job in waiting {
        cluster.api.succeed(job).await?;
    }
    eventually("nothing is asked of the host any more", async || {
        let commands = figure(&cluster.api, "kring_host_commands").await?;
        anyhow::ensure!(commands == 0, "{commands}");
        Ok(())
    })
    .await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_answer_costs_nobody_a_time_out_and_is_tried_by_one() -> anyhow::Result<()> {
    let config = "[hosts]\nbreaker_failures = 3".to_string();
    let cluster = Cluster::start_with(Setup { config, ..Setup::default() }).await?;
    // Any answer closes the breaker, also that to a ping: here only users ask.
    cluster.set("host.ping_interval", 3600.into()).await?;
    let host = cluster.host().await?;
    let (image, network) = (cluster.image().await?, cluster.network().await?);
    let vm = cluster.vm(&image, &network).await?;
    let log = format!("/v1/vms/{}/console/log", vm.id);
    let ask = async || cluster.api.send(Call::new(Method::GET, &log)).await;
    assert_eq!(ask().await?.status, 200);
    host.down();
    let mut tries = 0;
    let said = eventually("it is asked no more", async || {
        let said = is_refusal(&ask().await?)?;
        tries += 1;
        anyhow::ensure!(!said.contains("cannot be reached"), "{said}");
        Ok(said)
    })
    .await?;
    // The controller may have tried it too, on its own behalf.
    assert!(said.contains("times in a row") && tries <= 4, "{tries}: {said}");
    assert_eq!(figure(&cluster.api, "kring_host_breakers_open").await?, 1);
    // A job that needs the host is tried again, and ends as failed in its own time.
    let stop = cluster.vm_verb(vm.id, "stop").await?;
    assert_eq!(cluster.api.fail(&stop).await?, Code::HostUnreachable);
    assert!(figure(&cluster.api, "kring_host_commands_refused_total").await? >= 1);

    // It takes connections and does not answer: one waits for it, the others are told at once.
    host.up();
    host.freeze();
    let user = async || -> anyhow::Result<bool> {
        let mut refused_beside = false;
        eventually("the host answers", async || {
            let reply = ask().await?;
            if reply.status != 200 && is_refusal(&reply)?.contains("just now") {
                refused_beside = true;
                host.thaw();
            }
            anyhow::ensure!(reply.status == 200, "{}", reply.text);
            Ok(())
        })
        .await?;
        Ok(refused_beside)
    };
    let (one, other) = join(user(), user()).await;
    assert!(one? | other?, "one was refused while the other one tried");
    assert_eq!(figure(&cluster.api, "kring_host_breakers_open").await?, 0);
    cluster.vm_do(vm.id, "reboot").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_bursts_no_connection_to_a_host_is_open() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.set("host.ping_interval", 3600.into()).await?;
    let host = cluster.host().await?;
    let (image, network) = (cluster.image().await?, cluster.network().await?);
    let closed = async || {
        until("no connection to a host is open", async || cluster.sim.open_connections() == 0).await?;
        figure(&cluster.api, "kring_host_connections_total").await
    };
    let mut opened = closed().await?;
    for _ in 0..3 {
        cluster.vm(&image, &network).await?;
        let before = std::mem::replace(&mut opened, closed().await?);
        assert!(opened > before, "{before}");
    }
    cluster.connected(host.id, HostConnection::Connected).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_can_open_no_connection_holds_that_against_no_host() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(Setup { process: true, ..Setup::default() }).await?;
    let host = cluster.host().await?;
    // Longer than a connection is kept, so that each ping needs one.
    cluster.set("host.ping_interval", 2.into()).await?;
    let pid = cluster.pid().context("the controller is a process")?.to_string();
    let allow_files =
        async |most: &str| cmd::run("prlimit".as_ref(), &["--pid".as_ref(), pid.as_ref(), most.as_ref()]).await;
    allow_files("--nofile=1:").await?;
    // Twice as long as a host may be silent.
    let silent = Duration::from_secs(10);
    until("no ping is sent any more", async || cluster.sim.age() > host.pings.last() + silent).await?;
    allow_files("--nofile=4096:").await?;
    let before = cluster.sim.age();
    until("pings are sent again", async || host.pings.last() > before).await?;
    cluster.connected(host.id, HostConnection::Connected).await?;
    let log = std::fs::read_to_string(cluster.log_file())?;
    assert!(!log.contains("to=disconnected"), "{log}");
    cluster.stop().await
}
