//! Uploads of images: whole and durable, or nothing.

use shared::api::image::{Image, ImageSource, ImageState};
use shared::api::job::{JobRef, JobResource};
use shared::id::{ImageId, JobId};
use shared::time::Timestamp;
use shared::units::Bytes as Size;

use super::*;
use crate::messages::image::{FinishUpload, GetImage};

fn image(id: ImageId, state: ImageState, source: ImageSource) -> Image {
    Image {
        id,
        name: "debian".parse().unwrap(),
        account_id: AccountId::new(),
        state,
        source,
        format: None,
        sha256: None,
        size: None,
        virtual_size: None,
        firmware: Default::default(),
        created_at: Timestamp(0),
        links: Default::default(),
    }
}

async fn gateway(state: ImageState, source: ImageSource, accepts: bool) -> Gateway {
    Gateway::start_with(
        |config| config.max_upload = Size(100_000),
        move |services| {
            services.serve(move |_, m: GetImage| {
                let source = source.clone();
                async move { Ok(image(m.id, state, source)) }
            });
            services.serve(move |cx, m: FinishUpload| async move {
                if !accepts {
                    return Err(Error::new(Code::ImageRejected, "it is not a disk image"));
                }
                let key = cx.idempotency.as_ref().map(|i| i.key.clone()).unwrap_or_default();
                let kind = format!("{} {} {key}", m.body.size.0, m.body.sha256);
                Ok(JobRef {
                    job_id: JobId::new(),
                    resource: JobResource { kind, id: shared::id::ResourceId::uuid(m.id) },
                })
            });
        },
    )
    .await
}

fn put<'a>(gateway: &'a Gateway, id: ImageId, body: Vec<u8>) -> Call<'a> {
    let path = format!("/v1/images/{id}/content");
    gateway.call(Method::PUT, &path).admin().header("content-type", "application/octet-stream").body(body)
}

fn files(gateway: &Gateway) -> Vec<String> {
    let dir = std::fs::read_dir(gateway.dir.path().join("images"));
    dir.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn content_arrives_whole_with_its_checksum() {
    let gateway = gateway(ImageState::Creating, ImageSource::Upload, true).await;
    let id = ImageId::new();
    let content = vec![7; 90_000];
    let reply = put(&gateway, id, content.clone()).header("idempotency-key", "k").send().await;
    assert_eq!(reply.status, 202);
    let told = reply.json()["resource"]["kind"].as_str().unwrap().to_string();
    let sha256 = crate::auth::token::hex(&<sha2::Sha256 as sha2::Digest>::digest(&content));
    assert_eq!(told, format!("90000 {sha256} k"));
    let files = files(&gateway);
    assert!(files.len() == 1 && files[0].starts_with(&format!("{id}.")) && !files[0].ends_with(".part"), "{files:?}");
    assert_eq!(std::fs::read(gateway.dir.path().join("images").join(&files[0])).unwrap(), content);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let refusing = gateway(ImageState::Creating, ImageSource::Upload, false).await;
    assert_eq!(put(&refusing, ImageId::new(), vec![1; 10]).send().await.problem(), (422, "image_rejected".into()));
    let open = gateway(ImageState::Creating, ImageSource::Upload, true).await;
    assert_eq!(put(&open, ImageId::new(), vec![1; 100_001]).send().await.problem(), (413, "too_large".into()));
    assert_eq!(put(&open, ImageId::new(), Vec::new()).send().await.problem(), (400, "invalid_request".into()));
    let ready = gateway(ImageState::Ready, ImageSource::Upload, true).await;
    assert_eq!(put(&ready, ImageId::new(), vec![1; 10]).send().await.problem(), (409, "invalid_state".into()));
    let url = ImageSource::Url { url: "http://x".into() };
    let downloaded = gateway(ImageState::Creating, url, true).await;
    assert_eq!(put(&downloaded, ImageId::new(), vec![1; 10]).send().await.problem(), (409, "invalid_state".into()));
    for gateway in [&refusing, &open, &ready, &downloaded] {
        assert!(files(gateway).is_empty(), "{:?}", files(gateway));
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let gateway = gateway(ImageState::Creating, ImageSource::Upload, true).await;
    let id = ImageId::new();
    let mut stream = gateway.connect(None).await;
    let head = format!(
        "PUT /v1/images/{id}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: 5000\r\n\r\nbeginning"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    while files(&gateway).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(put(&gateway, id, vec![1; 10]).send().await.problem(), (409, "conflict".into()));
    drop(stream);
    while !files(&gateway).is_empty() {
        tokio::task::yield_now().await;
    }
    while put(&gateway, id, vec![1; 10]).send().await.status != 202 {}
}
