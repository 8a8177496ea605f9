//! Downloads from a server that behaves as each test says, and volumes on top, with the real qemu-img.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use shared::Code;
use shared::api::image::DiskFormat;
use shared::id::{ImageId, StorageId, TaskId, VolumeId};
use shared::image_header::{self, HEAD_LEN, Rejected};
use shared::units::Bytes;
use shared::wire::host::StorageSpec;
use shared::wire::image::{DeleteImage, EnsureImage, ImageOrigin, ImageSpec};
use shared::wire::volume::{CreateVolume, DeleteVolume, VolumeSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::cmd::Cmd;
use crate::ops;
use crate::service::harness::World;
use crate::storage::{local, names};
use crate::task::TaskCx;

fn cx() -> TaskCx {
    TaskCx::new(TaskId::new(), 1, Instant::now() + Duration::from_secs(60), CancellationToken::new())
}

/// A server that sends prepared bytes, one answer per connection, and keeps what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    _serve: AbortOnDropHandle<()>,
}

impl Server {
    async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/image", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::clone(&asked);
        let serve = async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heads.lock().unwrap().push(String::from_utf8(head).unwrap().to_lowercase());
                let _ = stream.write_all(&answer).await;
            }
        };
        Self { url, asked, _serve: AbortOnDropHandle::new(TaskTracker::new().spawn(serve)) }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes(), body].concat()
}

fn ok(body: &[u8]) -> Vec<u8> {
    answer(&format!("200 OK\r\netag: \"one\"\r\ncontent-length: {}", body.len()), body)
}

/// The beginning of an answer that breaks off.
fn broken(body: &[u8], sent: usize) -> Vec<u8> {
    answer(&format!("200 OK\r\netag: \"one\"\r\ncontent-length: {}", body.len()), &body[..sent])
}

fn rest(body: &[u8], from: usize) -> Vec<u8> {
    let (last, total) = (body.len() - 1, body.len());
    let head = format!(
        "206 Partial Content\r\netag: \"one\"\r\ncontent-range: bytes {from}-{last}/{total}\r\ncontent-length: {}",
        total - from
    );
    answer(&head, &body[from..])
}

fn disk() -> Vec<u8> {
    (0..1 << 20).map(|i: u32| (i % 251) as u8).collect()
}

fn sum(bytes: &[u8]) -> String {
    super::download::hex(&Sha256::digest(bytes))
}

fn spec(url: &str) -> ImageSpec {
    ImageSpec {
        image_id: ImageId::new(),
        origin: ImageOrigin::Url { url: url.into() },
        sha256: None,
        format: None,
        max_size: Bytes::gib(1),
        max_virtual_size: Bytes::gib(100),
    }
}

async fn ensure(world: &World, image: &ImageSpec) -> shared::Result<shared::wire::image::ImageInfo> {
    ops::image::ensure(&world.running.app, &cx(), EnsureImage { image: image.clone() }).await
}

fn cache(world: &World) -> Vec<String> {
    names(&world.dir.path().join("data/images")).unwrap()
}

#[tokio::test]
async fn an_image_is_downloaded_once_whoever_asks() {
    let world = World::new().await;
    let server = Server::start(vec![ok(&disk()), ok(&disk())]).await;
    let image = ImageSpec { sha256: Some(sum(&disk()).to_uppercase()), ..spec(&server.url) };
    let (one, two) = tokio::join!(ensure(&world, &image), ensure(&world, &image));
    let info = one.unwrap();
    assert_eq!(two.unwrap(), info);
    assert_eq!((info.format, info.size, info.virtual_size), (DiskFormat::Raw, Bytes::mib(1), Bytes::mib(1)));
    assert_eq!(info.sha256, sum(&disk()));
    assert_eq!(server.asked().len(), 1);
    let id = image.image_id;
    assert_eq!(cache(&world), [format!("{id}.json"), format!("{id}.raw")]);
    assert_eq!(world.running.app.images.list().unwrap(), [id]);
    let other = ensure(&world, &ImageSpec { sha256: Some("00".repeat(32)), ..image.clone() }).await;
    assert_eq!(other.unwrap_err().code, Code::ChecksumMismatch, "what is in the cache is checked as well");
    for _ in 0..2 {
        ops::image::delete(&world.running.app, &cx(), DeleteImage { image_id: id, storages: vec![] }).await.unwrap();
    }
    assert!(cache(&world).is_empty());
}

#[tokio::test]
async fn what_fails_a_check_leaves_nothing() {
    let mut backed = vec![0; 70_000];
    backed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    backed[15] = 200;
    let world = World::with(|c| c.image.retries = 0).await;
    for (name, code, answers, change) in [
        ("checksum", Code::ChecksumMismatch, ok(&disk()), Some("ab".repeat(32))),
        ("not found", Code::DownloadFailed, answer("404 Not Found\r\ncontent-length: 0", b""), None),
        ("backing file", Code::ImageRejected, ok(&backed), None),
        ("web page", Code::ImageRejected, ok(b"<html>please log in</html>"), None),
        ("too large", Code::ImageRejected, answer("200 OK\r\ncontent-length: 99999999999", b"x"), None),
        ("endless redirects", Code::DownloadFailed, answer("302 Found\r\nlocation: ftp://x/", b""), None),
        ("empty", Code::ImageRejected, ok(b""), None),
    ] {
        let server = Server::start(vec![answers]).await;
        let error = ensure(&world, &ImageSpec { sha256: change, ..spec(&server.url) }).await.unwrap_err();
        assert_eq!(error.code, code, "{name}: {error:?}");
        assert!(cache(&world).is_empty(), "{name}: {:?}", cache(&world));
    }
    let server = Server::start(vec![ok(&disk())]).await;
    let small = ImageSpec { max_virtual_size: Bytes::kib(64), ..spec(&server.url) };
    assert_eq!(ensure(&world, &small).await.unwrap_err().code, Code::ImageRejected);
    let bad = ensure(&world, &spec("file:///etc/passwd")).await.unwrap_err();
    assert_eq!(bad.code, Code::InvalidRequest);
}

#[tokio::test]
async fn this_host_is_no_image_server_unless_that_is_allowed() {
    let secret = Server::start(vec![ok(&disk())]).await;
    let by_name = secret.url.replace("127.0.0.1", "localhost");
    let world = World::with(|c| c.image.allow_loopback = false).await;
    for url in [&secret.url, &by_name] {
        let error = ensure(&world, &spec(url)).await.unwrap_err();
        assert!(error.code == Code::DownloadFailed && error.message.contains("allow_loopback"), "{url}: {error}");
    }
    let world = World::new().await;
    let redirect = Server::start(vec![answer("302 Found\r\nlocation: http://169.254.169.254/latest/", b"")]).await;
    let error = ensure(&world, &spec(&redirect.url)).await.unwrap_err();
    assert!(error.code == Code::DownloadFailed && error.message.contains("169.254.169.254"), "{error}");
    assert!(secret.asked().is_empty() && cache(&world).is_empty());
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let world = World::new().await;
    let body = disk();
    let server = Server::start(vec![broken(&body, 300_000), rest(&body, 300_000)]).await;
    let info = ensure(&world, &ImageSpec { sha256: Some(sum(&body)), ..spec(&server.url) }).await.unwrap();
    assert_eq!(info.size, Bytes::mib(1));
    let asked = server.asked();
    assert!(!asked[0].contains("range:"));
    assert!(asked[1].contains("range: bytes=300000-") && asked[1].contains("if-range: \"one\""), "{}", asked[1]);
}

#[tokio::test]
async fn a_download_is_resumed_by_the_next_command_and_begun_anew_when_the_content_changed() {
    let world = World::with(|c| c.image.retries = 0).await;
    let (old, new) = (disk(), vec![7; 1 << 20]);
    let server = Server::start(vec![broken(&old, 500_000), ok(&new)]).await;
    let image = spec(&server.url);
    assert_eq!(ensure(&world, &image).await.unwrap_err().code, Code::DownloadFailed);
    let id = image.image_id;
    assert_eq!(cache(&world), [format!("{id}.part"), format!("{id}.part.json")]);
    assert_eq!(ensure(&world, &image).await.unwrap().sha256, sum(&new));
    assert!(server.asked()[1].contains("range: bytes=500000-"));
}

#[tokio::test]
async fn a_download_of_an_earlier_boot_is_begun_anew() {
    let world = World::with(|c| c.image.retries = 0).await;
    let server = Server::start(vec![broken(&disk(), 500_000), ok(&disk())]).await;
    let image = spec(&server.url);
    assert_eq!(ensure(&world, &image).await.unwrap_err().code, Code::DownloadFailed);
    let note = world.dir.path().join("data/images").join(format!("{}.part.json", image.image_id));
    let text = std::fs::read_to_string(&note).unwrap();
    let boot = world.running.app.boot_id.to_string();
    std::fs::write(&note, text.replace(&boot, &uuid::Uuid::new_v4().to_string())).unwrap();
    ensure(&world, &image).await.unwrap();
    assert!(!server.asked()[1].contains("range:"));
}

#[tokio::test]
async fn no_room_is_found_before_the_disk_is_full() {
    let world = World::with(|c| c.image.keep_free = Bytes(u64::MAX)).await;
    let server = Server::start(vec![ok(&disk())]).await;
    assert_eq!(ensure(&world, &spec(&server.url)).await.unwrap_err().code, Code::NoSpace);
    assert!(cache(&world).is_empty());
}

#[tokio::test]
async fn a_cancelled_download_stops() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = spec(&format!("http://{}/never", listener.local_addr().unwrap()));
    let cx = cx();
    let work = ops::image::ensure(&world.running.app, &cx, EnsureImage { image });
    let stop = async {
        let silent = listener.accept().await.unwrap();
        cx.cancel.cancel();
        silent
    };
    let (result, _silent) = tokio::join!(work, stop);
    assert_eq!(result.unwrap_err().code, Code::Cancelled);
}

#[tokio::test]
async fn an_image_comes_from_the_controller() {
    let world = World::new().await;
    let image = ImageSpec { origin: ImageOrigin::Controller, ..spec("") };
    let path = format!("/agent/v1/images/{}/content", image.image_id);
    world.controller.on(move |request| match request.uri().path() == path {
        true => http::Response::new(bytes::Bytes::from(disk())),
        false => http::Response::default(),
    });
    assert_eq!(ensure(&world, &image).await.unwrap().sha256, sum(&disk()));
}

fn volume(world: &World, format: DiskFormat, size: Bytes, base: Option<ImageSpec>) -> VolumeSpec {
    let path = world.dir.path().join("pool").to_str().unwrap().to_string();
    let storage = StorageSpec { storage_id: StorageId::new(), path, kind: Default::default() };
    VolumeSpec { volume_id: VolumeId::new(), storage, format, size, base }
}

#[tokio::test]
async fn volumes_are_made_over_their_image_and_keep_it() {
    let world = World::new().await;
    let app = &world.running.app;
    let server = Server::start(vec![ok(&disk())]).await;
    let image = spec(&server.url);
    let create =
        async |volume: &VolumeSpec| ops::volume::create(app, &cx(), CreateVolume { volume: volume.clone() }).await;
    let delete = |v: &VolumeSpec| DeleteVolume { volume_id: v.volume_id, storage: v.storage.clone() };

    let thin = volume(&world, DiskFormat::Qcow2, Bytes::mib(8), Some(image.clone()));
    create(&thin).await.unwrap();
    create(&thin).await.unwrap();
    let conflict = create(&VolumeSpec { size: Bytes::mib(9), ..thin.clone() }).await.unwrap_err();
    assert!(conflict.code == Code::Conflict && conflict.message.contains("8 MiB"), "{conflict}");
    assert_eq!(create(&VolumeSpec { base: None, ..thin.clone() }).await.unwrap_err().code, Code::Conflict);
    let raw_too = VolumeSpec { format: DiskFormat::Raw, ..thin.clone() };
    assert_eq!(create(&raw_too).await.unwrap_err().code, Code::Conflict);

    let thick = volume(&world, DiskFormat::Raw, Bytes::mib(2), Some(image.clone()));
    create(&thick).await.unwrap();
    let path = local::volume_path(&thick.storage, thick.volume_id, DiskFormat::Raw).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() == 2 << 20 && bytes[..1 << 20] == disk()[..]);
    let empty = volume(&world, DiskFormat::Qcow2, Bytes::mib(1), None);
    create(&empty).await.unwrap();
    let small = volume(&world, DiskFormat::Qcow2, Bytes::kib(512), Some(image.clone()));
    assert_eq!(create(&small).await.unwrap_err().code, Code::InvalidRequest);
    assert_eq!(local::list(&thin.storage).unwrap().len(), 3, "nothing is left of those that failed");

    let image_id = image.image_id;
    let in_use = ops::image::delete(app, &cx(), DeleteImage { image_id, storages: vec![] }).await.unwrap_err();
    assert!(in_use.code == Code::InUse && in_use.message.contains(&thin.volume_id.to_string()), "{in_use}");
    let path = local::volume_path(&thin.storage, thin.volume_id, DiskFormat::Qcow2).unwrap();
    world.fake.disks.lock().unwrap().push(path);
    assert_eq!(ops::volume::delete(app, &cx(), delete(&thin)).await.unwrap_err().code, Code::InUse);
    world.fake.disks.lock().unwrap().clear();
    for volume in [&thin, &thin, &thick, &empty] {
        ops::volume::delete(app, &cx(), delete(volume)).await.unwrap();
    }
    assert!(local::list(&thin.storage).unwrap().is_empty());
    ops::image::delete(app, &cx(), DeleteImage { image_id, storages: vec![] }).await.unwrap();
}

async fn qemu_img(args: &[&str]) {
    Cmd::new("qemu-img").args(args).run(&CancellationToken::new()).await.unwrap();
}

fn inspect(path: &Path) -> Result<image_header::Header, Rejected> {
    let bytes = std::fs::read(path).unwrap();
    image_header::inspect(&bytes[..bytes.len().min(HEAD_LEN)], bytes.len() as u64)
}

#[tokio::test]
async fn the_header_parser_agrees_with_qemu_img() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    for (name, options) in [
        ("v3", "compat=1.1"),
        ("v2", "compat=0.10"),
        ("small", "cluster_size=512"),
        ("large", "cluster_size=2M"),
        ("sub", "extended_l2=on,cluster_size=128k"),
        ("lazy", "lazy_refcounts=on,refcount_bits=64"),
        ("zstd", "compression_type=zstd"),
        ("full", "preallocation=metadata"),
    ] {
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, &file(name), "1G"]).await;
        let header = inspect(&dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((header.format, header.virtual_size), (DiskFormat::Qcow2, 1 << 30), "{name}");
    }
    let (base, data, key) = (file("v3"), file("data.raw"), "secret,id=k,data=x");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &file("over")]).await;
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &format!("data_file={data}"), &file("split"), "1G"]).await;
    // The old method: that of LUKS measures the processor's speed first, which fails on a busy one.
    let old = "encrypt.format=aes,encrypt.key-secret=k";
    qemu_img(&["create", "-q", "--object", key, "-f", "qcow2", "-o", old, &file("secret"), "1M"]).await;
    qemu_img(&["create", "-q", "-f", "qcow2", &file("huge"), "100T"]).await;
    qemu_img(&["create", "-q", "-f", "qcow2", &file("snap"), "1M"]).await;
    qemu_img(&["snapshot", "-q", "-c", "s", &file("snap")]).await;
    for (name, expected) in [
        ("over", "Dependent(\"a backing file\")"),
        ("split", "Dependent(\"an external data file\")"),
        ("secret", "Feature(\"is encrypted\")"),
        ("huge", "TooLarge(109951162777600)"),
        ("snap", "Feature(\"has internal snapshots\")"),
    ] {
        assert_eq!(format!("{:?}", inspect(&dir.path().join(name)).unwrap_err()), expected, "{name}");
    }
    for format in ["vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"] {
        qemu_img(&["create", "-q", "-f", format, &file(format), "4M"]).await;
        let error = inspect(&dir.path().join(format)).unwrap_err();
        assert!(matches!(error, Rejected::OtherFormat(_)), "{format}: {error:?}");
    }
    qemu_img(&["create", "-q", "-f", "raw", &file("raw"), "4M"]).await;
    assert_eq!(inspect(&dir.path().join("raw")).unwrap().virtual_size, 4 << 20);
}
