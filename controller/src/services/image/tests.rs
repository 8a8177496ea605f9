//! Images through the bus: download, upload, removal.

use shared::api::image::{CreateImage as Body, DiskFormat, Image, ImageSource, ImageState};
use shared::api::job::{Job, JobState};
use shared::id::{AccountId, ImageId};
use shared::units::Bytes;
use shared::wire::Empty;
use shared::wire::image::{DeleteImage as DeleteOnHost, EnsureImage, ImageInfo};
use shared::{Code, Error};
use uuid::Uuid;

use crate::auth::token::sha256_hex;
use crate::messages::image::{CreateImage, DeleteImage, FinishUpload, GetImage, Uploaded};
use crate::services::testing::{TestSystem, call_of, systems, with_key};

fn image(name: &str, source: ImageSource) -> CreateImage {
    let body = Body {
        id: None,
        name: name.parse().unwrap(),
        source,
        sha256: None,
        format: None,
        firmware: Default::default(),
    };
    CreateImage { id: ImageId::new(), body }
}

fn from_url(name: &str) -> CreateImage {
    image(name, ImageSource::Url { url: "https://images.example.org/x.qcow2".to_string() })
}

fn info() -> ImageInfo {
    ImageInfo { format: DiskFormat::Qcow2, sha256: "ab".repeat(32), size: Bytes::mib(3), virtual_size: Bytes::gib(2) }
}

async fn run(system: &TestSystem, message: impl crate::bus::Request<Reply = shared::api::job::JobRef>) -> Job {
    let accepted = system.by_tenant(message).await.unwrap();
    system.end_of(accepted).await
}

async fn get(system: &TestSystem, id: ImageId) -> Result<Image, Code> {
    system.by_tenant(GetImage { id }).await.map_err(|error| error.code)
}

#[tokio::test]
async fn a_download_makes_an_image_ready_and_deleting_empties_the_cache() {
    for system in systems().await {
        let wanted = from_url("debian-12");
        system.agent.will_answer::<EnsureImage>(Ok(info()));
        let job = run(&system, wanted.clone()).await;
        assert_eq!((job.state, job.steps.len()), (JobState::Succeeded, 3), "{:?}", job.error);
        let ready = get(&system, wanted.id).await.unwrap();
        assert_eq!(
            (ready.state, ready.format, ready.virtual_size),
            (ImageState::Ready, Some(DiskFormat::Qcow2), Some(Bytes::gib(2)))
        );
        // What was found out since makes the same request no different one.
        assert_eq!(system.by_tenant(wanted.clone()).await.unwrap().job_id, job.id);
        let mut other = wanted.clone();
        other.body.sha256 = Some("cd".repeat(32));
        let conflict = system.by_tenant(other).await.unwrap_err();
        assert!(conflict.code == Code::Conflict && conflict.message.contains("another sha256"), "{conflict}");
        let stranger = system.bus.call(&call_of(AccountId::new(), false), wanted.clone()).await.unwrap_err();
        assert!(stranger.code == Code::Conflict && !stranger.message.contains("debian"), "{stranger}");
        system.agent.will_answer::<DeleteOnHost>(Ok(Empty {}));
        assert_eq!(run(&system, DeleteImage { id: wanted.id }).await.state, JobState::Succeeded);
        assert_eq!(get(&system, wanted.id).await, Err(Code::NotFound));
        assert_eq!(system.agent.commands(), ["image/ensure", "image/delete"]);
        let paths = system.event_paths().await;
        let of_image: Vec<_> = paths.iter().filter(|path| path.starts_with("/image/")).collect();
        assert_eq!(of_image, ["/image/created", "/image/state/changed", "/image/state/changed", "/image/deleted"]);
    }
}

#[tokio::test]
async fn a_failed_download_leaves_nothing() {
    for system in systems().await {
        system.agent.will_answer::<EnsureImage>(Err(Error::new(Code::ChecksumMismatch, "another checksum")));
        system.agent.will_answer::<DeleteOnHost>(Ok(Empty {}));
        let wanted = from_url("debian-12");
        let job = run(&system, wanted.clone()).await;
        assert_eq!((job.state, job.cleanup_owed.len()), (JobState::Failed, 0));
        assert_eq!(job.error.unwrap().code, Code::ChecksumMismatch);
        assert_eq!(get(&system, wanted.id).await, Err(Code::NotFound));
        assert_eq!(system.agent.commands(), ["image/ensure", "image/delete"]);
    }
}

#[tokio::test]
async fn without_a_host_nothing_is_downloaded() {
    for system in systems().await {
        let id = system.seed.host.id;
        let (from, to) = (system.seed.host.connection, shared::api::host::HostConnection::Disconnected);
        let away =
            system.context.deps.db.write(move |tx| {
                Box::pin(async move { crate::db::host::set_connection(tx, id, from, to, None).await })
            });
        assert!(away.await.unwrap());
        let wanted = from_url("debian-12");
        let job = run(&system, wanted.clone()).await;
        assert_eq!((job.state, job.error.map(|e| e.code)), (JobState::Failed, Some(Code::NoHostFits)));
        assert_eq!(get(&system, wanted.id).await, Err(Code::NotFound));
    }
}

#[tokio::test]
async fn a_name_is_taken_once_and_a_key_names_one_job() {
    for system in systems().await {
        let cx = with_key(&system.tenant, "k", "h");
        let first = system.bus.call(&cx, image("iso", ImageSource::Upload)).await.unwrap();
        let again = system.bus.call(&cx, image("iso", ImageSource::Upload)).await.unwrap();
        assert_eq!(first, again);
        let taken = system.by_tenant(image("iso", ImageSource::Upload)).await.unwrap_err();
        assert_eq!(taken.code, Code::NameTaken);
        let mut bad = from_url("x");
        bad.body.sha256 = Some("xyz".to_string());
        assert_eq!(system.by_tenant(bad).await.unwrap_err().fields[0].field, "sha256");
        let file = image("x", ImageSource::Url { url: "file:///etc/shadow".to_string() });
        assert_eq!(system.by_tenant(file).await.unwrap_err().fields[0].field, "source.url");
    }
}

/// Puts a content where the gateway puts uploads, and says that it is there.
async fn upload(system: &TestSystem, id: ImageId, content: &[u8], declared: Bytes) -> Job {
    let body = arrived(system, id, content, declared).await;
    run(system, FinishUpload { id, body }).await
}

/// Puts a content where the gateway puts uploads.
async fn arrived(system: &TestSystem, id: ImageId, content: &[u8], size: Bytes) -> Uploaded {
    let sha256 = crate::auth::token::hex(&<sha2::Sha256 as sha2::Digest>::digest(content));
    let uploaded = Uploaded { upload: Uuid::now_v7(), size, sha256 };
    let path = super::file::upload_path(&system.context.deps.data_dir, id, &uploaded);
    tokio::fs::write(path, content).await.unwrap();
    uploaded
}

/// Names in the folder of uploads.
fn files(system: &TestSystem) -> Vec<String> {
    let folder = std::fs::read_dir(system.context.deps.data_dir.join("images")).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn stored(system: &TestSystem, id: ImageId) -> bool {
    super::file::path(&system.context.deps.data_dir, id).exists()
}

#[tokio::test]
async fn an_upload_is_checked_and_kept_or_thrown_away() {
    for system in systems().await {
        let wanted = image("own", ImageSource::Upload);
        assert_eq!(run(&system, wanted.clone()).await.state, JobState::Succeeded);
        let waiting = get(&system, wanted.id).await.unwrap();
        assert_eq!((waiting.state, waiting.links["upload"].method.as_str()), (ImageState::Creating, "PUT"));
        for (content, declared, code) in [
            (&b"\x1f\x8b packed"[..], Bytes(9), Code::ImageRejected),
            (&[0; 1024][..], Bytes(2048), Code::ImageRejected),
            (&[][..], Bytes(0), Code::ImageRejected),
        ] {
            let job = upload(&system, wanted.id, content, declared).await;
            assert_eq!((job.state, job.error.map(|e| e.code)), (JobState::Failed, Some(code)));
            assert!(!stored(&system, wanted.id));
        }
        let job = upload(&system, wanted.id, &[0; 1024], Bytes(1024)).await;
        assert_eq!((job.state, &job.error), (JobState::Succeeded, &None));
        let ready = get(&system, wanted.id).await.unwrap();
        assert_eq!(
            (ready.state, ready.format, ready.size),
            (ImageState::Ready, Some(DiskFormat::Raw), Some(Bytes(1024)))
        );
        assert!(!ready.links.contains_key("upload"));
        assert_eq!(files(&system), [wanted.id.to_string()], "nothing else is left");
        let body = Uploaded { upload: Uuid::now_v7(), size: Bytes(1), sha256: sha256_hex("") };
        let again = system.by_tenant(FinishUpload { id: wanted.id, body }).await.unwrap_err();
        assert_eq!((again.code, stored(&system, wanted.id)), (Code::InvalidState, true));
        assert_eq!(run(&system, DeleteImage { id: wanted.id }).await.state, JobState::Succeeded);
        assert!(!stored(&system, wanted.id));
    }
}

#[tokio::test]
async fn of_two_uploads_at_once_one_wins_and_is_what_is_stored() {
    for system in systems().await {
        for round in 0..8_u8 {
            let wanted = image(&format!("race-{round}"), ImageSource::Upload);
            run(&system, wanted.clone()).await;
            let id = wanted.id;
            let (a, b) = (vec![round * 2 + 1; 1024], vec![round * 2 + 2; 2048]);
            let first = arrived(&system, id, &a, Bytes(1024)).await;
            let second = arrived(&system, id, &b, Bytes(2048)).await;
            let finish = async |body: Uploaded| match system.by_tenant(FinishUpload { id, body: body.clone() }).await {
                Ok(job) => system.end_of(job).await.error.map(|error| error.code),
                Err(error) => {
                    // As the gateway does after a refusal.
                    super::file::remove_upload(&system.context.deps.data_dir, id, &body).await.unwrap();
                    Some(error.code)
                }
            };
            let ends = tokio::join!(finish(first.clone()), finish(second.clone()));
            let (winner, lost) = match ends {
                (None, Some(lost)) => (first, lost),
                (Some(lost), None) => (second, lost),
                other => panic!("{other:?}"),
            };
            assert!(matches!(lost, Code::Conflict | Code::InvalidState), "{lost}");
            let ready = get(&system, id).await.unwrap();
            assert_eq!((ready.state, ready.sha256.as_ref()), (ImageState::Ready, Some(&winner.sha256)));
            let content = std::fs::read(super::file::path(&system.context.deps.data_dir, id)).unwrap();
            assert_eq!(crate::auth::token::hex(&<sha2::Sha256 as sha2::Digest>::digest(&content)), winner.sha256);
        }
        assert!(files(&system).iter().all(|name| !name.contains('.')), "{:?}", files(&system));
    }
}

#[tokio::test]
async fn an_upload_that_is_sent_again_or_that_nobody_took_leaves_no_file() {
    for system in systems().await {
        let wanted = image("again", ImageSource::Upload);
        run(&system, wanted.clone()).await;
        let (id, cx) = (wanted.id, with_key(&system.tenant, "k", "h"));
        let first = arrived(&system, id, &[1; 1024], Bytes(1024)).await;
        let job = system.bus.call(&cx, FinishUpload { id, body: first }).await.unwrap();
        let again = arrived(&system, id, &[1; 1024], Bytes(1024)).await;
        assert_eq!(system.bus.call(&cx, FinishUpload { id, body: again }).await.unwrap(), job);
        assert_eq!(system.end_of(job).await.state, JobState::Succeeded);
        assert_eq!(files(&system), [id.to_string()]);
        arrived(&system, id, &[1; 1024], Bytes(1024)).await;
        super::sweep_uploads(&system.context).await.unwrap();
        assert_eq!(files(&system).len(), 2, "it may just have come");
        system.context.deps.clock.step(2 * 3600 * 1000);
        super::sweep_uploads(&system.context).await.unwrap();
        assert_eq!(files(&system), [id.to_string()]);
    }
}

#[tokio::test]
async fn an_upload_must_be_what_was_declared() {
    for system in systems().await {
        let mut declared = image("sum", ImageSource::Upload);
        declared.body.sha256 = Some(sha256_hex("something else").to_uppercase());
        run(&system, declared.clone()).await;
        let job = upload(&system, declared.id, &[0; 512], Bytes(512)).await;
        assert_eq!(job.error.map(|e| e.code), Some(Code::ChecksumMismatch));
        let mut declared = image("format", ImageSource::Upload);
        declared.body.format = Some(DiskFormat::Qcow2);
        run(&system, declared.clone()).await;
        let job = upload(&system, declared.id, &[0; 512], Bytes(512)).await;
        assert_eq!(job.error.map(|e| e.code), Some(Code::ImageRejected));
    }
}

#[tokio::test]
async fn an_image_that_vms_are_based_on_stays() {
    for system in systems().await {
        let seed = system.seed.clone();
        let added = system.context.deps.db.write(move |tx| Box::pin(async move { seed.insert_vm(tx, "web").await }));
        added.await.unwrap();
        let id = system.seed.image.id;
        let error = system.by_tenant(DeleteImage { id }).await.unwrap_err();
        assert!(error.code == Code::InUse && error.message.contains("VM web"), "{error}");
        assert_eq!(get(&system, id).await.unwrap().state, ImageState::Creating);
        assert_eq!(system.by_tenant(DeleteImage { id: ImageId::new() }).await.unwrap_err().code, Code::NotFound);
    }
}
