//! Images: what is accepted, what is refused and why, uploads, and what is still in use.

use anyhow::Context;
use futures_util::future::join_all;
use harness::client::{Call, Client};
use harness::cluster::Cluster;
use harness::sim::{Fault, What, plausible_image, sha256_hex};
use reqwest::Method;
use shared::api::image::{CreateImage, DiskFormat, Image, ImageSource, ImageState};
use shared::api::job::JobRef;
use shared::error::Code;
use shared::id::ImageId;
use shared::units::Bytes;
use shared::wire::image::ImageInfo;
use shared::{Error, id::ResourceId};

/// A raw disk of 1 MiB with a boot sector's mark.
pub fn raw_disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    (disk[510], disk[511]) = (0x55, 0xaa);
    disk
}

/// Sends the content of an image and gives the job that checks it.
pub async fn upload(api: &Client, id: ImageId) -> anyhow::Result<JobRef> {
    let path = format!("/v1/images/{id}/content");
    let call = Call::new(Method::PUT, &path).raw("application/octet-stream", raw_disk());
    Ok(api.send(call).await?.read()?)
}

async fn create(cluster: &Cluster, body: &CreateImage) -> anyhow::Result<Result<Image, Code>> {
    let job: JobRef = match cluster.api.post("/v1/images", body).await {
        Ok(job) => job,
        Err(failure) => return Ok(Err(failure.code())),
    };
    match cluster.api.wait_job(job.job_id).await?.error {
        None => Ok(Ok(cluster.api.get(&format!("/v1/images/{}", job.resource.id)).await?)),
        Some(error) => Ok(Err(error.code)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_an_address_is_what_its_header_says() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.host().await?;
    let url = "http://images.example/debian.qcow2";
    let info = plausible_image(url);
    let body = CreateImage { sha256: Some(info.sha256.clone()), ..cluster.image_body(url) };
    let image = create(&cluster, &body).await?.map_err(|code| anyhow::anyhow!("{code}"))?;
    assert_eq!(image.state, ImageState::Ready);
    let found = (image.format, image.sha256, image.size, image.virtual_size);
    assert_eq!(found, (Some(info.format), Some(info.sha256), Some(info.size), Some(info.virtual_size)));
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_image_is_said_and_nothing_stays_of_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.host().await?;
    let before = cluster.snapshot().await?;
    let info = plausible_image("x");
    let answers = [
        ("backing", Err(Error::new(Code::ImageRejected, "the image depends on another file")), Code::ImageRejected),
        ("missing", Err(Error::new(Code::DownloadFailed, "404")), Code::DownloadFailed),
        ("truncated", Err(Error::new(Code::DownloadFailed, "the download broke off")), Code::DownloadFailed),
        ("full", Err(Error::new(Code::NoSpace, "the disk is full")), Code::NoSpace),
        ("absurd", Ok(ImageInfo { virtual_size: Bytes::gib(100 * 1024), ..info.clone() }), Code::ImageRejected),
        ("large", Ok(ImageInfo { size: Bytes::gib(100 * 1024), ..info.clone() }), Code::ImageRejected),
    ];
    for (name, answer, code) in answers {
        let url = format!("http://images.example/{name}");
        cluster.sim.set_image(&url, answer);
        assert_eq!(create(&cluster, &cluster.image_body(&url)).await?.err(), Some(code), "{name}");
    }
    let sum = CreateImage { sha256: Some("0".repeat(64)), ..cluster.image_body("http://images.example/sum") };
    assert_eq!(create(&cluster, &sum).await?.err(), Some(Code::ChecksumMismatch));
    let format = CreateImage { format: Some(DiskFormat::Raw), ..cluster.image_body("http://images.example/format") };
    assert_eq!(create(&cluster, &format).await?.err(), Some(Code::ImageRejected));
    for url in [
        "file:///etc/shadow",
        "ftp://images.example/a",
        "http://",
        "not a url",
        "http://user:secret@images.example/a\n",
    ] {
        assert_eq!(create(&cluster, &cluster.image_body(url)).await?.err(), Some(Code::InvalidRequest), "{url}");
    }
    for sum in ["", "xyz", "00"] {
        let body = CreateImage { sha256: Some(sum.to_string()), ..cluster.image_body("http://images.example/b") };
        assert_eq!(create(&cluster, &body).await?.err(), Some(Code::InvalidRequest), "{sum}");
    }
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_checked_and_reaches_the_hosts() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.host().await?;
    let network = cluster.network().await?;
    let sum = sha256_hex(&raw_disk());
    let body = CreateImage { source: ImageSource::Upload, sha256: Some(sum.clone()), ..cluster.image_body("") };
    cluster.api.post::<serde_json::Value>("/v1/images", &body).await?;
    let id = body.id.context("an id")?;
    let path = format!("/v1/images/{id}");
    let waiting: Image = cluster.api.get(&path).await?;
    assert_eq!(waiting.state, ImageState::Creating);
    // A VM cannot be made from an image without content.
    let early = cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&waiting, &network)).await;
    assert_eq!(early.unwrap_err().code(), Code::InvalidState);
    let job = upload(&cluster.api, id).await?;
    cluster.api.succeed(&job).await?;
    let image: Image = cluster.api.get(&path).await?;
    let found = (image.state, image.format, image.sha256.clone(), image.virtual_size);
    assert_eq!(found, (ImageState::Ready, Some(DiskFormat::Raw), Some(sum.clone()), Some(Bytes::mib(1))));
    let vm = cluster.vm(&image, &network).await?;
    let cached = cluster.sim_host(vm.host_id)?.state().images[&id].clone();
    assert_eq!(cached.sha256, sum, "the host has fetched the same bytes");
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_fetch_an_image_is_not_the_end_of_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let (full, good) = (cluster.host().await?, cluster.host().await?);
    let fetched = "http://images.example/debian.qcow2";
    for what in [What::FailHalfway { code: Code::NoSpace }, What::Fail { code: Code::HostFailed }, What::DropBefore] {
        let fault = cluster.sim.faults().add(Fault::new("image/ensure", what.clone()).on(full.id));
        // Until the host that cannot do it was asked first.
        while cluster.sim.faults().hits(fault) == 0 {
            let image = create(&cluster, &cluster.image_body(fetched)).await?;
            let image = image.map_err(|code| anyhow::anyhow!("{what:?}: {code}"))?;
            assert_eq!(image.state, ImageState::Ready);
            assert!(good.state().images.contains_key(&image.id));
            assert!(!full.state().images.contains_key(&image.id));
        }
        cluster.sim.faults().remove(fault);
    }
    // What is wrong with the image itself is not tried on every host.
    cluster.sim.set_image("http://images.example/gone", Err(Error::new(Code::DownloadFailed, "404")));
    let asked = cluster.sim.faults().add(Fault::new("image/ensure", What::Delay { ms: 1 }));
    let failed = create(&cluster, &cluster.image_body("http://images.example/gone")).await?;
    assert_eq!((failed.err(), cluster.sim.faults().hits(asked)), (Some(Code::DownloadFailed), 1));
    // When no host can do it, what they say is told and nothing stays.
    let before = cluster.snapshot().await?;
    cluster.sim.faults().add(Fault::new("image/ensure", What::FailHalfway { code: Code::NoSpace }));
    assert_eq!(create(&cluster, &cluster.image_body(fetched)).await?.err(), Some(Code::NoSpace));
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_uploads_at_once_cannot_mix() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.host().await?;
    let network = cluster.network().await?;
    let disks = [1_u8, 2].map(|mark| {
        let mut disk = raw_disk();
        disk[1000..].fill(mark);
        disk
    });
    for _ in 0..4 {
        let id = ImageId::new();
        let body = CreateImage { id: Some(id), source: ImageSource::Upload, ..cluster.image_body("") };
        let made: JobRef = cluster.api.post("/v1/images", &body).await?;
        cluster.api.succeed(&made).await?;
        let path = format!("/v1/images/{id}/content");
        let ends = disks.each_ref().map(|disk| async {
            let call = Call::new(Method::PUT, &path).raw("application/octet-stream", disk.clone());
            match cluster.api.send(call).await?.read::<JobRef>() {
                Ok(job) => Ok(cluster.api.wait_job(job.job_id).await?.error.map(|error| error.code)),
                Err(failure) => anyhow::Ok(Some(failure.code())),
            }
        });
        let ends: Vec<_> = join_all(ends).await.into_iter().collect::<anyhow::Result<_>>()?;
        let winner = ends.iter().position(Option::is_none).context("one of them wins")?;
        let lost = ends[1 - winner];
        assert!(matches!(lost, Some(Code::Conflict | Code::InvalidState)), "{ends:?}");
        let image: Image = cluster.api.get(&format!("/v1/images/{id}")).await?;
        let sum = sha256_hex(&disks[winner]);
        assert_eq!((image.state, image.sha256.clone()), (ImageState::Ready, Some(sum.clone())));
        let vm = cluster.vm(&image, &network).await?;
        assert_eq!(cluster.sim_host(vm.host_id)?.state().images[&id].sha256, sum, "what hosts get is what is recorded");
    }
    let left: Vec<_> = std::fs::read_dir(cluster.data_dir().join("images"))?.collect::<Result<_, _>>()?;
    assert!(left.iter().all(|file| !file.file_name().to_string_lossy().contains('.')), "{left:?}");
    assert_eq!(left.len(), 4);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_something_else_is_refused() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.host().await?;
    let id = ImageId::new();
    let body = CreateImage {
        id: Some(id),
        source: ImageSource::Upload,
        sha256: Some("0".repeat(64)),
        ..cluster.image_body("")
    };
    cluster.api.post::<serde_json::Value>("/v1/images", &body).await?;
    let path = format!("/v1/images/{id}/content");
    let packed = b"\x1f\x8b\x08\x00".repeat(1024);
    for (content, expected) in [(packed, Code::ImageRejected), (raw_disk(), Code::ChecksumMismatch)] {
        let call = Call::new(Method::PUT, &path).raw("application/octet-stream", content);
        let code = match cluster.api.send(call).await?.read::<JobRef>() {
            Ok(job) => cluster.api.fail(&job).await?,
            Err(failure) => failure.code(),
        };
        assert!(code == expected || code == Code::ChecksumMismatch, "{code}, not {expected}");
    }
    let image: Image = cluster.api.get(&format!("/v1/images/{id}")).await?;
    assert_eq!(image.state, ImageState::Creating, "it still waits for its content");
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_stays_and_an_unused_one_goes_from_the_hosts_too() -> anyhow::Result<()> {
    let (cluster, image, network) = super::vm::ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/images/{}", image.id);
    let refused = match cluster.api.delete::<JobRef>(&path).await {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(failure) => failure.code(),
    };
    assert_eq!(refused, Code::InUse);
    cluster.remove_vm(vm.id).await?;
    let job: JobRef = cluster.api.delete(&path).await?;
    cluster.api.succeed(&job).await?;
    assert_eq!(cluster.api.get::<Image>(&path).await.unwrap_err().code(), Code::NotFound);
    assert!(cluster.sim.hosts().iter().all(|host| !host.state().images.contains_key(&image.id)));
    assert_eq!(image.id.uuid(), job.resource.id);
    cluster.stop().await
}
