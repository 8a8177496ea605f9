//! Every flow, broken at every step in every way: the job ends done or rolled back, and nothing is
//! left over. A flow without a case here fails the suite.

use std::collections::BTreeSet;

use anyhow::Context;
use harness::cluster::Cluster;
use harness::kit::{self, Saboteur, WAYS, Way};
use serde_json::json;
use shared::api::host::Host;
use shared::api::image::{CreateImage, Image, ImageSource};
use shared::api::job::JobRef;
use shared::api::network::Network;
use shared::api::page::Page;
use shared::api::vm::{StopMode, StopVm, Vm};
use shared::api::volume::{AttachVolume, Volume};
use shared::units::Bytes;

use super::image::upload;

/// How a job of a flow is brought about, and what must be the same after it has been rolled back.
struct Case {
    kind: &'static str,
    /// Whether everything is as before the job after its rolling back; otherwise only what the
    /// database says and what is on the hosts must fit each other.
    restores: bool,
}

const CASES: &[Case] = &[
    Case { kind: "host.maintain", restores: false },
    Case { kind: "image.create", restores: true },
    Case { kind: "image.delete", restores: false },
    Case { kind: "image.finish_upload", restores: true },
    Case { kind: "network.delete", restores: false },
    Case { kind: "vm.attach_volume", restores: true },
    Case { kind: "vm.create", restores: true },
    Case { kind: "vm.delete", restores: false },
    Case { kind: "vm.detach_volume", restores: false },
    Case { kind: "vm.expunge", restores: false },
    Case { kind: "vm.migrate", restores: false },
    Case { kind: "vm.pause", restores: false },
    Case { kind: "vm.reboot", restores: false },
    Case { kind: "vm.recover", restores: true },
    Case { kind: "vm.resume", restores: false },
    Case { kind: "vm.start", restores: false },
    Case { kind: "vm.stop", restores: false },
    Case { kind: "volume.delete", restores: false },
];

/// Steps that remove what nobody needs any more: when they fail, the job goes on and they are owed as clean-up.
const OWED: &[(&str, &str)] =
    &[("image.finish_upload", "tidy"), ("vm.expunge", "remove"), ("vm.migrate", "clean"), ("volume.delete", "remove")];

/// Flows that need a second host.
const MOVES: &[&str] = &["host.maintain", "vm.migrate"];

/// What the flows work on.
struct Bench {
    cluster: Cluster,
    image: Image,
    network: Network,
}

/// What one job works on.
enum Target {
    Nothing,
    Vm(Vm),
    Volume(Volume, Option<Vm>),
    Image(Image),
    Network(Network),
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let (cluster, image, network) = super::vm::ready().await?;
        Ok(Self { cluster, image, network })
    }

    async fn vm(&self) -> anyhow::Result<Vm> {
        self.cluster.vm(&self.image, &self.network).await
    }

    /// Makes what a job of this kind needs.
    async fn prepare(&self, kind: &str) -> anyhow::Result<Target> {
        let cluster = &self.cluster;
        Ok(match kind {
            "vm.create" | "image.create" => Target::Nothing,
            "host.maintain" => {
                let hosts: Page<Host> = cluster.api.get("/v1/hosts").await?;
                for host in hosts.items {
                    let enabled = json!({ "admin_state": "enabled" });
                    cluster.api.patch::<Host>(&format!("/v1/hosts/{}", host.id), &enabled).await?;
                }
                Target::Vm(self.vm().await?)
            }
            "vm.stop" | "vm.reboot" | "vm.pause" | "vm.migrate" | "vm.delete" => Target::Vm(self.vm().await?),
            "vm.start" | "vm.resume" | "vm.recover" | "vm.expunge" => {
                let vm = self.vm().await?;
                match kind {
                    "vm.start" => drop(cluster.vm_do(vm.id, "stop").await?),
                    "vm.resume" => drop(cluster.vm_do(vm.id, "pause").await?),
                    _ => {
                        let job: JobRef = cluster.api.delete(&format!("/v1/vms/{}", vm.id)).await?;
                        cluster.api.succeed(&job).await?;
                    }
                }
                Target::Vm(vm)
            }
            "vm.attach_volume" | "vm.detach_volume" | "volume.delete" => {
                let vm = self.vm().await?;
                let volume = cluster.volume(Bytes::mib(64)).await?;
                let path = format!("/v1/volumes/{}", volume.id);
                if kind != "vm.attach_volume" {
                    let job: JobRef =
                        cluster.api.post(&format!("{path}/attach"), &AttachVolume { vm_id: vm.id }).await?;
                    cluster.api.succeed(&job).await?;
                }
                if kind == "volume.delete" {
                    let job: JobRef = cluster.api.post(&format!("{path}/detach"), &json!({})).await?;
                    cluster.api.succeed(&job).await?;
                }
                Target::Volume(volume, Some(vm))
            }
            "image.delete" => Target::Image(cluster.image().await?),
            "image.finish_upload" => {
                let body = CreateImage { source: ImageSource::Upload, ..cluster.image_body("") };
                cluster.api.post::<serde_json::Value>("/v1/images", &body).await?;
                Target::Image(cluster.api.get(&format!("/v1/images/{}", body.id.context("an id")?)).await?)
            }
            "network.delete" => {
                let network = cluster.network().await?;
                let vm = cluster.vm(&self.image, &network).await?;
                cluster.remove_vm(vm.id).await?;
                Target::Network(network)
            }
            other => anyhow::bail!("nobody has said how a job of the kind {other} is brought about"),
        })
    }

    /// Brings a job about.
    async fn submit(&self, kind: &str, target: &Target) -> anyhow::Result<JobRef> {
        submit(&self.cluster, (&self.image, &self.network), kind, target).await
    }
}

async fn submit(
    cluster: &Cluster,
    (image, network): (&Image, &Network),
    kind: &str,
    target: &Target,
) -> anyhow::Result<JobRef> {
    let api = &cluster.api;
    let verb = kind.split('.').next_back().unwrap_or_default();
    Ok(match (kind, target) {
        ("vm.create", _) => api.post("/v1/vms", &cluster.vm_body(image, network)).await?,
        ("image.create", _) => {
            let name = cluster.name("flow");
            api.post("/v1/images", &cluster.image_body(&format!("http://images.example/{name}"))).await?
        }
        ("host.maintain", Target::Vm(vm)) => {
            let host = vm.host_id.context("a host")?;
            api.post(&format!("/v1/hosts/{host}/maintain"), &json!({})).await?
        }
        ("vm.delete", Target::Vm(vm)) => api.delete(&format!("/v1/vms/{}", vm.id)).await?,
        ("vm.stop" | "vm.reboot", Target::Vm(vm)) => {
            let body = StopVm { mode: StopMode::Force, timeout_s: None };
            api.post(&format!("/v1/vms/{}/{verb}", vm.id), &body).await?
        }
        (_, Target::Vm(vm)) => api.post(&format!("/v1/vms/{}/{verb}", vm.id), &json!({})).await?,
        ("vm.attach_volume", Target::Volume(volume, Some(vm))) => {
            api.post(&format!("/v1/volumes/{}/attach", volume.id), &AttachVolume { vm_id: vm.id }).await?
        }
        ("vm.detach_volume", Target::Volume(volume, _)) => {
            api.post(&format!("/v1/volumes/{}/detach", volume.id), &json!({})).await?
        }
        ("volume.delete", Target::Volume(volume, _)) => api.delete(&format!("/v1/volumes/{}", volume.id)).await?,
        ("image.delete", Target::Image(image)) => api.delete(&format!("/v1/images/{}", image.id)).await?,
        ("image.finish_upload", Target::Image(image)) => upload(api, image.id).await?,
        ("network.delete", Target::Network(network)) => api.delete(&format!("/v1/networks/{}", network.id)).await?,
        (other, _) => anyhow::bail!("{other} does not go with its target"),
    })
}

/// Breaks a flow at each of its steps in each way.
async fn break_flow(case: &Case) -> anyhow::Result<()> {
    let mut bench = Bench::start().await?;
    if MOVES.contains(&case.kind) {
        bench.cluster.host().await?;
    }
    let saboteur = Saboteur::new();
    bench.cluster.set_probe(saboteur.clone());
    // Once without harm: the flow works, and tells its steps.
    let target = bench.prepare(case.kind).await?;
    let accepted = bench.submit(case.kind, &target).await?;
    let job = bench.cluster.api.succeed(&accepted).await?;
    anyhow::ensure!(job.kind == case.kind, "a job of the kind {} came about", job.kind);
    for step in job.steps.iter().skip(1) {
        let owed = OWED.contains(&(case.kind, step.as_str()));
        // What is never undone cannot be broken while it is undone.
        for way in WAYS.iter().filter(|way| !owed || way.goes_on() || matches!(way, Way::FailBefore | Way::FailAfter)) {
            let target = bench.prepare(case.kind).await.context("preparing")?;
            bench.cluster.assert_consistent().await.context("before")?;
            let before = bench.cluster.snapshot().await?;
            let Bench { cluster, image, network } = &mut bench;
            let ground = (&*image, &*network);
            let broken = (case.kind, step.as_str(), *way);
            let end = kit::break_once(cluster, &saboteur, broken, owed, async |c| {
                submit(c, ground, case.kind, &target).await
            });
            let doing = || format!("{} broken at {step}: {way:?}", case.kind);
            end.await.with_context(doing)?;
            if case.restores && !owed && !way.goes_on() {
                bench.cluster.assert_clean(&before).await.with_context(doing)?;
            } else {
                bench.cluster.assert_consistent().await.with_context(doing)?;
            }
        }
    }
    bench.cluster.stop().await
}

macro_rules! flows {
    ($($test:ident = $kind:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() -> anyhow::Result<()> {
                let case = CASES.iter().find(|case| case.kind == $kind).context("a case")?;
                break_flow(case).await
            }
        )*

        const TESTED: &[&str] = &[$($kind),*];
    };
}

flows! {
    host_maintain = "host.maintain";
    image_create = "image.create";
    image_delete = "image.delete";
    image_finish_upload = "image.finish_upload";
    network_delete = "network.delete";
    vm_attach_volume = "vm.attach_volume";
    vm_create = "vm.create";
    vm_delete = "vm.delete";
    vm_detach_volume = "vm.detach_volume";
    vm_expunge = "vm.expunge";
    vm_migrate = "vm.migrate";
    vm_pause = "vm.pause";
    vm_reboot = "vm.reboot";
    vm_recover = "vm.recover";
    vm_resume = "vm.resume";
    vm_start = "vm.start";
    vm_stop = "vm.stop";
    volume_delete = "volume.delete";
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flow_has_a_case() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let app = cluster.app().context("the controller runs here")?;
    let kinds: BTreeSet<_> = app.context().engine.kinds().into_iter().collect();
    assert_eq!(kinds, CASES.iter().map(|case| case.kind).collect(), "flows and cases");
    assert_eq!(kinds, TESTED.iter().copied().collect(), "flows and tests");
    cluster.stop().await
}
