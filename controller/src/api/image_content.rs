//! The content of images: uploaded by users, fetched by hosts.
//!
//! Each upload is streamed to a file of its own, `<image>.<upload>.part`, made durable, and loses the
//! `.part` only when all of it is there; whatever goes wrong before leaves nothing. The image service
//! is told afterwards; it decides whether the content is good, and gives it the image's name. So two
//! uploads of one image, also by two controllers, never write to the same file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shared::api::image::{Image, ImageSource, ImageState};
use shared::api::job::{Job, JobRef};
use shared::id::{ImageId, ResourceId as _};
use shared::units::Bytes;
use shared::{Code, Error};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::Api;
use super::error::Failure;
use super::extract::{Id, Wait};
use super::forward;
use super::reply::{self, Answer};
use crate::auth::token::hex;
use crate::cx::{Cx, Idempotency};
use crate::messages::image::{FinishUpload, GetImage, Uploaded, file_name};

/// Bytes that are read from a file at a time.
const PIECE: usize = 256 * 1024;

/// Sends the content of an image whose source is `upload`.
#[utoipa::path(
    put,
    path = "/images/{id}/content",
    tag = "images",
    params(("id" = ImageId, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, body = JobRef), (status = 200, body = Job))
)]
pub async fn put_image_content(
    State(api): State<Arc<Api>>,
    mut cx: Cx,
    wait: Wait,
    Id(id): Id<ImageId>,
    request: Request,
) -> Answer {
    expects_content(&api.call(&cx, GetImage { id }).await?)?;
    if cx.dry_run {
        return reply::ok(&json!({"dry_run": true}));
    }
    if let Some(owner) = forward::owner_elsewhere(&api, &cx, id.uuid(), request.headers()).await? {
        return forward::hand_on(&api, &owner, request).await;
    }
    let key =
        request.headers().get(super::context::IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()).map(str::to_string);
    let _alone = Alone::take(&api, id)?;
    let body = receive(&api, id, request).await?;
    let uploaded = api.config.image_dir().join(body.file_name(id));
    cx.idempotency = key.map(|key| Arc::new(Idempotency { key, request_hash: format!("PUT {id} {}", body.sha256) }));
    // The upload had its own time; what is left is an ordinary request.
    cx.deadline = Instant::now() + api.config.api.timeout();
    match api.call(&cx, FinishUpload { id, body }).await {
        Ok(job) => reply::job(&api, &cx, wait, job).await,
        Err(error) => {
            // After a clear refusal nobody will look at the content; otherwise a job may have it.
            if error.code.status() < 500 {
                let _ = tokio::fs::remove_file(uploaded).await;
            }
            Err(error.into())
        }
    }
}

fn path(api: &Api, id: ImageId) -> PathBuf {
    api.config.image_dir().join(id.to_string())
}

fn expects_content(image: &Image) -> Result<(), Error> {
    match (&image.source, image.state) {
        (ImageSource::Upload, ImageState::Creating) => Ok(()),
        (ImageSource::Upload, state) => {
            Err(Error::new(Code::InvalidState, format!("image {} is {state}: it has its content already", image.name)))
        }
        (ImageSource::Url { .. }, _) => {
            Err(Error::new(Code::InvalidState, format!("image {} is downloaded from a URL, not uploaded", image.name)))
        }
    }
}

/// The only upload of an image at a time: what a second one sends would be thrown away.
struct Alone<'a> {
    api: &'a Api,
    id: ImageId,
}

impl<'a> Alone<'a> {
    fn take(api: &'a Api, id: ImageId) -> Result<Self, Error> {
        match api.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            true => Ok(Self { api, id }),
            false => Err(Error::new(Code::Conflict, "the content of this image is being sent already")),
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.api.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A file that disappears unless it was finished.
struct Part {
    path: PathBuf,
    finished: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // There may be nothing to remove.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn receive(api: &Api, id: ImageId, request: Request) -> Result<Uploaded, Error> {
    let max = api.config.api.max_upload;
    let too_large = || Error::new(Code::TooLarge, format!("the content is larger than {max}"));
    let announced: Option<u64> =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > max.0) {
        return Err(too_large());
    }
    let upload = Uuid::now_v7();
    let whole = api.config.image_dir().join(file_name(id, upload));
    let mut part =
        Part { path: api.config.image_dir().join(format!("{}.part", file_name(id, upload))), finished: false };
    tokio::fs::create_dir_all(api.config.image_dir()).await.map_err(failed)?;
    let mut file = File::create(&part.path).await.map_err(failed)?;
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    let mut pieces = request.into_body().into_data_stream();
    while let Some(piece) = timeout(api.config.api.upload_stall(), pieces.next())
        .await
        .map_err(|_| Error::new(Code::DeadlineExceeded, "the upload stalled: nothing came for too long"))?
    {
        let piece =
            piece.map_err(|e| Error::new(Code::InvalidRequest, "the upload broke off").with_detail(e.to_string()))?;
        size += piece.len() as u64;
        if size > max.0 {
            return Err(too_large());
        }
        hash.update(&piece);
        file.write_all(&piece).await.map_err(failed)?;
    }
    if size == 0 {
        return Err(Error::new(Code::InvalidRequest, "the body is empty: send the content of the image"));
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    tokio::fs::rename(&part.path, &whole).await.map_err(failed)?;
    part.finished = true;
    sync_dir(&api.config.image_dir()).await.map_err(failed)?;
    Ok(Uploaded { upload, size: Bytes(size), sha256: hex(&hash.finalize()) })
}

async fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).await?.sync_all().await
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Code::NoSpace, "the controller's disk is full: the operator must make room")
                .with_detail(error.to_string())
        }
        _ => Error::internal(format_args!("the content of an image: {error}")),
    }
}

/// Sends the content of an image, or the rest of it (`Range`, with `If-Range`).
pub(super) async fn send(api: &Api, id: ImageId, headers: &HeaderMap) -> Result<Response, Failure> {
    let place = Arc::clone(&api.downloads).try_acquire_owned();
    let place =
        place.map_err(|_| Error::new(Code::Unavailable, "too many hosts fetch images now: try again in a moment"))?;
    let mut file = match File::open(path(api, id)).await {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::not_found("content of image", id).into()),
        Err(e) => return Err(failed(e).into()),
    };
    let meta = file.metadata().await.map_err(failed)?;
    let etag = etag(&meta);
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|given| given == etag));
    let mut response = Response::new(Body::empty());
    let (from, length) = match range.map(|range| parse_range(range, meta.len())) {
        Some(Range::Unsatisfiable) => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, format!("bytes */{}", meta.len()));
            return Ok(response);
        }
        Some(Range::Part { from, to }) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, format!("bytes {from}-{to}/{}", meta.len()));
            (from, to - from + 1)
        }
        Some(Range::Whole) | None => (0, meta.len()),
    };
    file.seek(io::SeekFrom::Start(from)).await.map_err(failed)?;
    set(&mut response, header::CONTENT_LENGTH, length.to_string());
    set(&mut response, header::ETAG, etag);
    set(&mut response, header::ACCEPT_RANGES, "bytes".to_string());
    set(&mut response, header::CONTENT_TYPE, "application/octet-stream".to_string());
    let pieces = ReaderStream::with_capacity(file.take(length), PIECE).map(move |piece| {
        let _held = &place;
        piece
    });
    *response.body_mut() = Body::from_stream(pieces);
    Ok(response)
}

fn set(response: &mut Response, name: http::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(name, value);
    }
}

/// Content never changes under its name; size and time tell a second upload from the first.
fn etag(meta: &std::fs::Metadata) -> String {
    let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    format!("\"{:x}-{:x}\"", meta.len(), modified.as_nanos())
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { from: u64, to: u64 },
    Unsatisfiable,
}

/// One range of bytes (RFC 9110, 14.1.2). What is malformed or has several ranges is ignored.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((from, to)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let number = |text: &str| if text.is_empty() { Some(None) } else { text.parse::<u64>().ok().map(Some) };
    match (number(from), number(to)) {
        (Some(Some(from)), Some(to)) if to.is_none_or(|to| from <= to) => match from < size {
            true => Range::Part { from, to: to.unwrap_or(u64::MAX).min(size - 1) },
            false => Range::Unsatisfiable,
        },
        (Some(None), Some(Some(last))) => match last == 0 || size == 0 {
            true => Range::Unsatisfiable,
            false => Range::Part { from: size.saturating_sub(last), to: size - 1 },
        },
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let part = |from, to| Range::Part { from, to };
        for (text, range) in [
            ("bytes=0-", part(0, 9)),
            ("bytes=3-5", part(3, 5)),
            ("bytes=3-99", part(3, 9)),
            ("bytes=-4", part(6, 9)),
            ("bytes=-40", part(0, 9)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-3", Range::Whole),
            ("bytes=1-2,4-5", Range::Whole),
            ("bytes=-", Range::Whole),
            ("lines=1-2", Range::Whole),
            ("bytes=99999999999999999999-", Range::Whole),
        ] {
            assert_eq!(parse_range(text, 10), range, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Unsatisfiable);
    }
}
