//! `start`: a VM on a real host by `POST /v1/vms`, until its domain runs, beside the same work by hand: an
//! overlay by `qemu-img create -b` and a domain of the same XML by `virsh create`. Both in turn, on the
//! same host, for one VM and for some at the same moment; everything else (image, network, seed) is there already.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use futures_util::future::try_join_all;
use reqwest::Method;
use serde::Deserialize;
use shared::api::image::{CreateImage, Image, ImageSource};
use shared::api::job::{Job, JobRef, JobState};
use shared::api::vm::{CreateVm, Vm};
use shared::units::Bytes;
use uuid::Uuid;

use super::host::{Real, lab, missing};
use super::process::Watch;
use super::{Bench, quantile};
use crate::client::Call;
use crate::cmd;

/// Measures this many times each, with so many VMs at the same moment, one number after the other.
///
/// # Errors
/// When anything fails.
#[expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
pub async fn run(rounds: usize, sizes: &[usize]) -> anyhow::Result<()> {
    if let Some(missing) = missing() {
        println!("start  skipped: a host cannot be made here: {missing}");
        return Ok(());
    }
    let mut bench = Bench::begin("start")?;
    let guest = cmd::run(lab("guest/build.sh").as_os_str(), &[]).await?;
    let guest = PathBuf::from(guest.trim().lines().last().context("the guest's image has a path")?);
    let real = Real::start().await?;
    let image = upload(&real, &guest).await?;
    let network = real.cluster.network().await?;
    let body = || CreateVm { memory: Some(Bytes::mib(160)), ..real.cluster.vm_body(&image, &network) };
    // The first VM brings image and network to the host, and is what is copied by hand.
    let first = real.cluster.vm_as(&body()).await.context("the first VM")?;
    let by_hand = ByHand::like(&real, &first).await?;
    real.cluster.vm_do(first.id, "stop").await?;
    for &size in sizes {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut controller, mut agent) = (0.0, 0.0);
        for _ in 0..rounds {
            let bodies: Vec<_> = (0..size).map(|_| body()).collect();
            let watches = (Watch::of(real.cluster.pid().context("a process")?)?, Watch::of(real.agent)?);
            ours.push(by_api(&real, &bodies).await?);
            controller += watches.0.spent()?.each(rounds * size).cpu * 1000.0;
            agent += watches.1.spent()?.each(rounds * size).cpu * 1000.0;
            theirs.push(by_hand.make(&real, size).await?);
        }
        ours.sort_unstable();
        theirs.sort_unstable();
        let of = (size, "VMs at once");
        let (api, hand) = (quantile(&ours, 0.5) / 1000.0, quantile(&theirs, 0.5) / 1000.0);
        bench.point(of, "POST /v1/vms until all run, median", api, "ms", "");
        bench.point(of, "qemu-img and virsh, median", hand, "ms", "");
        bench.point(of, "ratio of the medians", api / hand, "", "at most 1.15");
        bench.point(of, "the controller's CPU for a VM, and to remove it", controller, "ms", "");
        bench.point(of, "the agent's CPU for a VM, and to remove it", agent, "ms", "");
        for (name, all) in [("POST /v1/vms", &ours), ("by hand", &theirs)] {
            bench.figure(format!("{size} VMs at once: {name}, fastest"), quantile(all, 0.0) / 1000.0, "ms", "");
            bench.figure(format!("{size} VMs at once: {name}, slowest"), quantile(all, 1.0) / 1000.0, "ms", "");
        }
    }
    real.stop().await?;
    bench.end()
}

async fn upload(real: &Real, guest: &Path) -> anyhow::Result<Image> {
    let body = CreateImage { source: ImageSource::Upload, ..real.cluster.image_body("") };
    let made: JobRef = real.cluster.api.post("/v1/images", &body).await?;
    real.cluster.api.succeed(&made).await?;
    let path = format!("/v1/images/{}", made.resource.id);
    let content = format!("{path}/content");
    let call = Call::new(Method::PUT, &content).raw("application/octet-stream", std::fs::read(guest)?);
    let checked: JobRef = real.cluster.api.send(call).await?.read()?;
    real.cluster.api.succeed(&checked).await?;
    Ok(real.cluster.api.get(&path).await?)
}

/// Makes VMs and removes them; how long the making took, in microseconds.
async fn by_api(real: &Real, bodies: &[CreateVm]) -> anyhow::Result<u32> {
    let begin = Instant::now();
    try_join_all(bodies.iter().map(async |body| {
        let job: Job = real.cluster.api.send(Call::new(Method::POST, "/v1/vms").json(body).wait(60)).await?.read()?;
        anyhow::ensure!(job.state == JobState::Succeeded, "{job:?}");
        Ok(())
    }))
    .await?;
    let took = begin.elapsed();
    for body in bodies {
        real.cluster.remove_vm(body.id.context("an id was chosen")?).await?;
    }
    Ok(u32::try_from(took.as_micros())?)
}

/// What is done by hand.
struct ByHand {
    /// The VM that is copied.
    vm: Vm,
    /// The definition of its domain, without what would make Kring take a copy for its own.
    xml: String,
    /// Its root volume, what that is based on, and how large it is.
    volume: PathBuf,
    base: String,
    size: u64,
    /// Folder of the VM's seed and log.
    files: PathBuf,
}

#[derive(Deserialize)]
struct Disk {
    #[serde(rename = "virtual-size")]
    size: u64,
    #[serde(rename = "full-backing-filename")]
    base: String,
}

impl ByHand {
    async fn like(real: &Real, vm: &Vm) -> anyhow::Result<Self> {
        let xml = real.lab.sh(&format!("virsh dumpxml --inactive kring-{}", vm.id)).await?;
        let (before, rest) = xml.split_once("<metadata>").context("the domain has metadata")?;
        let (_, after) = rest.split_once("</metadata>").context("the metadata ends")?;
        let xml = format!("{before}{after}");
        let root = vm.root_volume_id.to_string();
        let volume = xml.split(['\'', '"']).find(|text| text.starts_with('/') && text.contains(&root));
        let volume = PathBuf::from(volume.context("the domain has its root volume")?);
        // The guest holds the file; looking at it does no harm.
        let told = real.lab.sh(&format!("qemu-img info -U --output=json {}", volume.display())).await?;
        let Disk { size, base } = serde_json::from_str(&told)?;
        let files = real.agent_data().join("vms").join(vm.id.to_string());
        Ok(Self { vm: vm.clone(), xml, volume, base, size, files })
    }

    /// Makes copies and removes them; how long the making took, in microseconds.
    async fn make(&self, real: &Real, count: usize) -> anyhow::Result<u32> {
        let copies = (0..count).map(|_| self.copy()).collect::<anyhow::Result<Vec<_>>>()?;
        let each = |line: fn(&Copied) -> &str| copies.iter().map(line).collect::<Vec<_>>().join("\n");
        let line = format!(
            "{}
             from=$(date +%s%N)
             {}
             for one in $making; do wait $one; done
             to=$(date +%s%N)
             echo $(((to - from) / 1000))
             {}",
            each(|copy| &copy.prepare),
            each(|copy| &copy.make),
            each(|copy| &copy.remove)
        );
        Ok(real.lab.sh(&line).await.context("by hand")?.trim().parse()?)
    }

    /// What makes one copy, and what removes it.
    fn copy(&self) -> anyhow::Result<Copied> {
        let (id, volume) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let (vm, root) = (self.vm.id.to_string(), self.vm.root_volume_id.to_string());
        let xml = self.xml.replace(&format!("kring-{vm}"), &format!("by-hand-{id}"));
        let xml = xml.replace(&vm, &id).replace(&root, &volume);
        let disk = self.volume.display().to_string().replace(&root, &volume);
        let files = self.files.display().to_string();
        let copy = files.replace(&vm, &id);
        let definition = format!("{copy}.xml");
        std::fs::write(&definition, xml)?;
        let Self { base, size, .. } = self;
        Ok(Copied {
            prepare: format!("cp -r {files} {copy}"),
            make: format!(
                "(qemu-img create -q -f qcow2 -b {base} -F qcow2 {disk} {size} && virsh -q create {definition} >/dev/null) & making=\"$making $!\""
            ),
            remove: format!("virsh -q destroy by-hand-{id} >/dev/null; rm -r {copy} {definition} {disk}"),
        })
    }
}

/// Lines of shell.
struct Copied {
    prepare: String,
    make: String,
    remove: String,
}
