//! One download into the cache: streamed to `<image-id>.part`, hashed on the way, resumed when it
//! breaks off, and checked by its header before any other program may look at it.
//!
//! A network failure leaves the part with a note of where it came from and of the server's validator;
//! every other failure leaves nothing.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use nix::libc::O_NOFOLLOW;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::units::Bytes;
use shared::wire::image::{ImageInfo, ImageOrigin, ImageSpec};
use shared::{Code, Error, Result, image_header};
use tokio::io::AsyncWriteExt;

use super::guard::{Guard, refusal};
use super::{Images, accept};
use crate::app::App;
use crate::config::ImageConfig;
use crate::controller::{self, Backoff};
use crate::identity::replace_file;
use crate::storage::{FileError, local, remove_file};
use crate::task::TaskCx;

/// How much is written between two looks at the free space, when the server does not say how much comes.
const LOOK_EVERY: u64 = 64 << 20;

/// A client for image servers anywhere: no certificate of the host, redirects bounded, and no time
/// limit but for silence, since images are large.
pub(super) fn client(config: &ImageConfig) -> Result<reqwest::Client> {
    crate::identity::tls::install_provider();
    let guard = Guard::new(config.allow_loopback);
    reqwest::Client::builder()
        .redirect(guard.redirects(config.max_redirects))
        .dns_resolver(guard.resolver())
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(config.stall_timeout_s))
        .pool_max_idle_per_host(0)
        .user_agent(concat!("kring-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(Error::internal)
}

/// What is known of a part: it is resumed only when the server still has the same content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PartNote {
    /// The URL, or `controller`.
    origin: String,
    /// A strong ETag, or the date of the last change.
    validator: Option<String>,
    /// The boot in which it was written: a host that lost its power may have lost a piece of it.
    boot_id: uuid::Uuid,
}

/// Why an attempt ended.
enum Stop {
    /// The part stays, and the next attempt goes on from there.
    Broken(Error),
    /// There is no use in going on; the part is removed.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

/// One download.
pub(super) struct Download<'a> {
    images: &'a Images,
    app: &'a App,
    cx: &'a TaskCx,
    spec: &'a ImageSpec,
    part: PathBuf,
    note_path: PathBuf,
    note: PartNote,
    limit: u64,
    have: u64,
    hash: Sha256,
}

impl<'a> Download<'a> {
    /// Prepares a download, with what an earlier one has left.
    pub(super) fn new(images: &'a Images, app: &'a App, cx: &'a TaskCx, spec: &'a ImageSpec) -> Result<Self> {
        let origin = match &spec.origin {
            ImageOrigin::Controller => "controller".to_string(),
            ImageOrigin::Url { url } => check_url(url)?,
        };
        let (part, note_path) = (images.file(spec.image_id, "part"), images.file(spec.image_id, "part.json"));
        let left: PartNote =
            std::fs::read(&note_path).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default();
        let boot_id = app.boot_id;
        let same = left.origin == origin && left.boot_id == boot_id && left.validator.is_some();
        let note = if same { left } else { PartNote { origin, validator: None, boot_id } };
        let limit = spec.max_size.0.min(images.config.max_download.0);
        Ok(Self { images, app, cx, spec, part, note_path, note, limit, have: 0, hash: Sha256::new() })
    }

    /// Downloads and checks; the part is then whole and acceptable.
    ///
    /// # Errors
    /// `download_failed`, `checksum_mismatch`, `image_rejected`, `no_space`, and those of the task.
    pub(super) async fn run(mut self) -> Result<ImageInfo> {
        self.take_up().await?;
        let mut backoff = Backoff::default();
        let mut attempts = 0;
        loop {
            let error = match self.cx.until_cancelled(Box::pin(self.attempt())).await {
                Ok(Ok(info)) => return Ok(info),
                Ok(Err(Stop::Final(error))) => {
                    remove_file(&self.part)?;
                    remove_file(&self.note_path)?;
                    return Err(error);
                }
                Ok(Err(Stop::Broken(error))) => error,
                Err(stopped) => return Err(stopped),
            };
            attempts += 1;
            if attempts > self.images.config.retries {
                return Err(error);
            }
            tracing::debug!(image.id = %self.spec.image_id, error = error.chain(), attempts, "the download is resumed");
            self.cx.sleep(backoff.wait()).await?;
        }
    }

    /// Hashes what an earlier download has left, or removes it when it cannot be resumed.
    async fn take_up(&mut self) -> Result<()> {
        if self.note.validator.is_none() {
            remove_file(&self.part)?;
            return Ok(());
        }
        let path = self.part.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path).ok()?;
            let (mut hash, mut have, mut buffer) = (Sha256::new(), 0_u64, vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer).ok()? {
                    0 => return Some((hash, have)),
                    n => {
                        hash.update(&buffer[..n]);
                        have += n as u64;
                    }
                }
            }
        });
        if let Some((hash, have)) = hashed.await.map_err(Error::internal)? {
            (self.hash, self.have) = (hash, have);
        }
        Ok(())
    }

    /// One request, to the end of the content or to a failure. The outer error is never used: it is
    /// there so that the task's deadline and cancellation can be told from the attempt's own end.
    async fn attempt(&mut self) -> Result<Result<ImageInfo, Stop>> {
        Ok(self.try_once().await)
    }

    async fn try_once(&mut self) -> Result<ImageInfo, Stop> {
        let answer = self.request().await?;
        let total = self.start(&answer)?;
        self.check_space(total.map(|t| t - self.have))?;
        self.receive(answer, total).await?;
        if total.is_some_and(|t| t != self.have) {
            return Err(Stop::Broken(failed("the server sent less than it said")));
        }
        self.check().await.map_err(Stop::Final)
    }

    async fn request(&self) -> Result<Response, Stop> {
        let resume = self.note.validator.as_deref().filter(|_| self.have > 0);
        let ImageOrigin::Url { url } = &self.spec.origin else {
            let resume = resume.map(|v| (self.have, v));
            return self.app.controller.image_content(self.spec.image_id, resume).await.map_err(from_controller);
        };
        let address = reqwest::Url::parse(url).map_err(Error::internal)?;
        if let Err(refused) = Guard::new(self.images.config.allow_loopback).check_url(&address) {
            return Err(Stop::Final(failed(format!("the image is not downloaded: {refused}"))));
        }
        let mut request = self.images.http.get(address).header(ACCEPT_ENCODING, "identity");
        if let Some(validator) = resume {
            request = request.header(RANGE, format!("bytes={}-", self.have)).header(IF_RANGE, validator);
        }
        let answer = request.send().await.map_err(|e| {
            let error = failed("the image could not be downloaded").caused_by(&e);
            match refusal(&e) {
                Some(refused) => Stop::Final(failed(format!("the image is not downloaded: {refused}"))),
                None if e.is_redirect() || e.is_builder() => Stop::Final(error),
                None => Stop::Broken(error),
            }
        })?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        let error = failed(format!("the image could not be downloaded: the server answers {status}"));
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        Err(if passing { Stop::Broken(error) } else { Stop::Final(error) })
    }

    /// Reads the head of an answer: whether it goes on where the part ends, and how much there is in all.
    fn start(&mut self, answer: &Response) -> Result<Option<u64>, Stop> {
        let headers = answer.headers();
        let from = content_range(headers);
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            self.forget_part()?;
            return Err(Stop::Broken(failed("the server does not go on where the download broke off")));
        }
        if answer.status() == StatusCode::PARTIAL_CONTENT && from.is_none_or(|(from, _)| from != self.have) {
            self.forget_part()?;
            return Err(Stop::Broken(failed("the server goes on at another place than asked")));
        }
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            self.forget_part()?;
            self.note.validator = validator(headers);
            let text = serde_json::to_vec(&self.note).map_err(Error::internal)?;
            replace_file(&self.note_path, &text, 0o644)
                .map_err(|e| FileError::new("could not write", &self.note_path, e))?;
        }
        let total = match from {
            Some((_, total)) => total,
            None => answer.content_length(),
        };
        match total {
            Some(total) if total > self.limit => Err(Stop::Final(self.too_large())),
            Some(total) if total < self.have => {
                self.forget_part()?;
                Err(Stop::Broken(failed("the server has less than was downloaded already")))
            }
            _ => Ok(total),
        }
    }

    async fn receive(&mut self, answer: Response, total: Option<u64>) -> Result<(), Stop> {
        let options =
            std::fs::OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(O_NOFOLLOW).open(&self.part);
        let path = self.part.clone();
        let disk = |e| FileError::new("could not write", &path, e);
        let mut file = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(options.map_err(disk)?));
        let mut stream = answer.bytes_stream();
        let mut looked_at = self.have;
        let mut broken = None;
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(e) => {
                    broken = Some(Stop::Broken(failed("the download broke off").caused_by(&e)));
                    break;
                }
            };
            if self.have + chunk.len() as u64 > self.limit {
                return Err(Stop::Final(self.too_large()));
            }
            file.write_all(&chunk).await.map_err(disk)?;
            self.hash.update(&chunk);
            self.have += chunk.len() as u64;
            if total.is_none() && self.have - looked_at >= LOOK_EVERY {
                looked_at = self.have;
                self.check_space(Some(LOOK_EVERY))?;
            }
            self.tell(total);
        }
        file.flush().await.map_err(disk)?;
        file.get_ref().sync_all().await.map_err(disk)?;
        broken.map_or(Ok(()), Err)
    }

    fn tell(&self, total: Option<u64>) {
        let (have, of) = (Bytes(self.have), total.map(|t| format!(" of {}", Bytes(t))).unwrap_or_default());
        let percent = total.map_or(0, |t| self.have.saturating_mul(85).checked_div(t).unwrap_or(0));
        self.cx.progress(u8::try_from(percent).unwrap_or(85), &format!("downloads the image: {have}{of}"));
    }

    /// Checks the whole file: checksum, header, what the command expects.
    async fn check(&self) -> Result<ImageInfo> {
        self.cx.progress(88, "checks the image");
        let sha256 = hex(&self.hash.clone().finalize());
        if let Some(expected) = self.spec.sha256.as_deref().filter(|e| !e.eq_ignore_ascii_case(&sha256)) {
            let message = format!("the download has the SHA-256 {sha256}, expected was {expected}");
            return Err(Error::new(Code::ChecksumMismatch, message));
        }
        let read_head = || {
            let mut head = Vec::new();
            std::fs::File::open(&self.part)?.take(image_header::HEAD_LEN as u64).read_to_end(&mut head)?;
            Ok(head)
        };
        let head: Vec<u8> = read_head().map_err(|e| FileError::new("could not read", &self.part, e))?;
        let header = image_header::inspect(&head, self.have)?;
        let info = ImageInfo {
            format: header.format,
            sha256,
            size: Bytes(self.have),
            virtual_size: Bytes(header.virtual_size),
        };
        accept(self.spec, &info)?;
        Ok(info)
    }

    fn check_space(&self, needed: Option<u64>) -> Result<()> {
        let (_, available) = local::space(&self.images.dir)?;
        let usable = available - self.images.config.keep_free;
        match needed.filter(|n| *n > usable.0) {
            Some(needed) => {
                let message =
                    format!("the host's image cache has no room: {} are needed, {usable} can be used", Bytes(needed));
                Err(Error::new(Code::NoSpace, message))
            }
            None => Ok(()),
        }
    }

    fn forget_part(&mut self) -> Result<()> {
        remove_file(&self.part)?;
        (self.have, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn too_large(&self) -> Error {
        let message = format!("the image is larger than {}, which is the most that is allowed", Bytes(self.limit));
        Error::new(Code::ImageRejected, message)
    }
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Code::DownloadFailed, message)
}

fn from_controller(error: controller::Error) -> Stop {
    match error {
        controller::Error::Refused(error) if !error.code.is_transient() => {
            Stop::Final(Error { code: Code::DownloadFailed, ..error }.during("the controller does not have the image"))
        }
        other => Stop::Broken(failed("the image could not be fetched from the controller").caused_by(&other)),
    }
}

/// Only HTTP and HTTPS, without a password that would end up in logs.
fn check_url(url: &str) -> Result<String> {
    match reqwest::Url::parse(url) {
        Ok(parsed)
            if matches!(parsed.scheme(), "http" | "https")
                && parsed.has_host()
                && parsed.username().is_empty()
                && parsed.password().is_none() =>
        {
            Ok(url.to_string())
        }
        _ => Err(Error::invalid("image.origin.url", "must be an http:// or https:// address without a user name")),
    }
}

/// First byte and total of a `Content-Range: bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// What names this version of the content: a strong ETag, or the date of its last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_http_and_carries_no_password() {
        assert!(check_url("https://images.example/x.qcow2").is_ok());
        for bad in ["file:///etc/passwd", "ftp://x/y", "http://u:p@x/y", "http://", "x", ""] {
            assert_eq!(check_url(bad).unwrap_err().code, Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn ranges_and_validators_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_RANGE, "bytes 5-9/10".parse().unwrap());
        headers.insert(ETAG, "W/\"weak\"".parse().unwrap());
        assert_eq!(content_range(&headers), Some((5, Some(10))));
        assert_eq!(validator(&headers), None);
        headers.insert(LAST_MODIFIED, "Wed, 21 Oct 2026 07:28:00 GMT".parse().unwrap());
        assert!(validator(&headers).unwrap().starts_with("Wed"));
        headers.insert(ETAG, "\"strong\"".parse().unwrap());
        assert_eq!(validator(&headers).as_deref(), Some("\"strong\""));
    }
}
