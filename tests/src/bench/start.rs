//! `start`: a VM on a real host by `POST /v1/vms`, until its domain runs, beside the same work by hand: an
//! overlay by `qemu-img create -b` and a domain of the same XML by `virsh create`. Both in turn, on the
//! same host; everything else (image, network, seed) is there already.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use reqwest::Method;
use serde::Deserialize;
use shared::api::image::{CreateImage, Image, ImageSource};
use shared::api::job::{Job, JobRef, JobState};
use shared::api::vm::{CreateVm, Vm};
use shared::units::Bytes;
use uuid::Uuid;

use super::host::{Real, lab, missing};
use super::{Bench, quantile};
use crate::client::Call;
use crate::cmd;

/// Measures, this many times each.
///
/// # Errors
/// When anything fails.
#[expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
pub async fn run(rounds: u32) -> anyhow::Result<()> {
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
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(by_api(&real, &body()).await?);
        theirs.push(by_hand.once(&real).await?);
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    let (api, hand) = (quantile(&ours, 0.5) / 1000.0, quantile(&theirs, 0.5) / 1000.0);
    bench.figure(format!("POST /v1/vms until it runs, median of {rounds}"), api, "ms", "");
    bench.figure(format!("qemu-img and virsh, median of {rounds}"), hand, "ms", "");
    bench.figure("ratio of the medians", api / hand, "", "at most 1.15");
    for (name, all) in [("POST /v1/vms", &ours), ("by hand", &theirs)] {
        bench.figure(format!("{name}, fastest"), quantile(all, 0.0) / 1000.0, "ms", "");
        bench.figure(format!("{name}, slowest"), quantile(all, 1.0) / 1000.0, "ms", "");
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

/// Makes a VM and removes it; how long the making took, in microseconds.
async fn by_api(real: &Real, body: &CreateVm) -> anyhow::Result<u32> {
    let begin = Instant::now();
    let job: Job = real.cluster.api.send(Call::new(Method::POST, "/v1/vms").json(body).wait(60)).await?.read()?;
    let took = begin.elapsed();
    anyhow::ensure!(job.state == JobState::Succeeded, "{job:?}");
    real.cluster.remove_vm(body.id.context("an id was chosen")?).await?;
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

    /// Makes a copy and removes it; how long the making took, in microseconds.
    async fn once(&self, real: &Real) -> anyhow::Result<u32> {
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
        let line = format!(
            "cp -r {files} {copy}
             from=$(date +%s%N)
             qemu-img create -q -f qcow2 -b {base} -F qcow2 {disk} {size}
             virsh -q create {definition} >/dev/null
             to=$(date +%s%N)
             echo $(((to - from) / 1000))
             virsh -q destroy by-hand-{id} >/dev/null
             rm -r {copy} {definition} {disk}"
        );
        Ok(real.lab.sh(&line).await.context("by hand")?.trim().parse()?)
    }
}
