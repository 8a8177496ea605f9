//! Handlers of the image service.

use shared::api::Link;
use shared::api::image::{CreateImage as Body, Image, ImageSource, ImageState};
use shared::api::job::JobRef;
use shared::api::page::Page;
use shared::id::ResourceId;
use shared::{Code, Error, Result};

use super::create::Create;
use super::delete::Delete;
use super::finish_upload::FinishUpload;
use super::{create, delete, file, finish_upload};
use crate::cx::Cx;
use crate::db;
use crate::messages::image as messages;
use crate::services::{Context, id_taken, owner, same_or_conflict};
use crate::workflow::Flow;

/// How long the file of an upload may lie here without being written to and without a job.
const UPLOAD_KEPT_MS: i64 = 3600 * 1000;
/// Longest URL; what browsers and proxies take.
const MAX_URL: usize = 2048;

pub(super) async fn create(context: Context, cx: Cx, message: messages::CreateImage) -> Result<JobRef> {
    let (account_id, body) = (owner(&cx)?, normal(message.body)?);
    let image = Image {
        id: message.id,
        name: body.name,
        account_id,
        state: ImageState::Creating,
        source: body.source,
        format: body.format,
        sha256: body.sha256,
        size: None,
        virtual_size: None,
        firmware: body.firmware,
        created_at: context.deps.clock.now(),
        links: Default::default(),
    };
    match repeated(&context, &image).await? {
        Some(first) => Ok(first),
        None => context.engine.submit::<Create>(&cx, account_id, create::State::new(image)).await,
    }
}

/// Checks what needs no look at the state, and writes it in its one form.
fn normal(mut body: Body) -> Result<Body> {
    if let Some(sha256) = &mut body.sha256 {
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::invalid("sha256", "must be 64 hexadecimal digits, as sha256sum prints them"));
        }
        sha256.make_ascii_lowercase();
    }
    match &body.source {
        ImageSource::Url { url } => check_url(url)?,
        ImageSource::Upload => {}
    }
    Ok(body)
}

fn check_url(url: &str) -> Result<()> {
    let refuse = |message: &str| Err(Error::invalid("source.url", message));
    if url.len() > MAX_URL {
        return refuse("must have at most 2048 characters");
    }
    let Ok(parsed) = url.parse::<http::Uri>() else {
        return refuse("is not a URL: give http://… or https://…");
    };
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return refuse("must begin with http:// or https://");
    }
    match parsed.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            refuse("must not hold a user name or password: they would be shown to everybody who sees the image")
        }
        Some(authority) if !authority.host().is_empty() => Ok(()),
        _ => refuse("names no host"),
    }
}

/// The first job of an image that exists already with the same content; a conflict when it differs.
async fn repeated(context: &Context, wanted: &Image) -> Result<Option<JobRef>> {
    let mut conn = context.deps.db.read().await?;
    let Some(existing) = db::image::get(&mut conn, wanted.id).await? else {
        return Ok(None);
    };
    if existing.account_id != wanted.account_id {
        return Err(id_taken("image"));
    }
    // What was found out since, and what was not asked for, is no difference.
    let same = Image {
        state: existing.state,
        format: wanted.format.or(existing.format),
        sha256: wanted.sha256.clone().or_else(|| existing.sha256.clone()),
        size: existing.size,
        virtual_size: existing.virtual_size,
        created_at: existing.created_at,
        ..wanted.clone()
    };
    same_or_conflict("image", &existing, &same)?;
    match db::job::find(&mut conn, wanted.id.uuid(), Create::KIND).await? {
        Some(row) => Ok(Some(JobRef { job_id: row.job.id, resource: row.job.resource })),
        None => Err(Error::new(
            Code::Conflict,
            format!(
                "image {} exists, and the job that made it is not kept any more: GET /v1/images/{}",
                existing.name, existing.id
            ),
        )),
    }
}

pub(super) async fn get(context: Context, _: Cx, message: messages::GetImage) -> Result<Image> {
    let mut conn = context.deps.db.read().await?;
    let image = db::image::get(&mut conn, message.id).await?;
    image.map(with_links).ok_or_else(|| Error::not_found("image", message.id))
}

pub(super) async fn list(context: Context, cx: Cx, message: messages::ListImages) -> Result<Page<Image>> {
    let page = context.deps.db.page(&db::image::LIST, message.params, cx.caller.scope()).await?;
    Ok(page.read(db::image::from_row)?.map(with_links))
}

pub(super) async fn finish_upload(context: Context, cx: Cx, message: messages::FinishUpload) -> Result<JobRef> {
    let state = finish_upload::State::new(message.id, message.body.clone());
    let job = context.engine.submit::<FinishUpload>(&cx, owner(&cx)?, state).await?;
    if cx.idempotency.is_some() && !is_about(&context, &job, &message.body).await? {
        // A repetition, answered with the first job: what it sent once more belongs to nobody.
        file::remove_upload(&context.deps.data_dir, message.id, &message.body).await?;
    }
    Ok(job)
}

/// Whether a job works on this upload.
async fn is_about(context: &Context, job: &JobRef, uploaded: &messages::Uploaded) -> Result<bool> {
    let mut conn = context.deps.db.read().await?;
    let row = db::job::get(&mut conn, job.job_id).await?;
    let state = row.map(|row| serde_json::from_str::<finish_upload::State>(&row.data)).transpose();
    Ok(state.map_err(Error::internal)?.is_some_and(|state| state.upload() == uploaded.upload))
}

/// Removes files of uploads that broke off with the controller, or whose job was never accepted. What
/// a job works on stays, however long that takes.
pub async fn sweep_uploads(context: &Context) -> Result<()> {
    let before = context.deps.clock.now().plus_ms(-UPLOAD_KEPT_MS);
    for (image, file) in file::stale_uploads(&context.deps.data_dir, before).await? {
        let held = {
            let mut conn = context.deps.db.read().await?;
            db::job::has_open(&mut conn, image.uuid()).await?
        };
        if !held {
            tracing::info!(image.id = %image, file = %file.display(), "an upload that nobody took is removed");
            file::remove_file(&file).await?;
        }
    }
    Ok(())
}

pub(super) async fn delete(context: Context, cx: Cx, message: messages::DeleteImage) -> Result<JobRef> {
    context.engine.submit::<Delete>(&cx, owner(&cx)?, delete::State::new(message.id)).await
}

fn with_links(mut image: Image) -> Image {
    let path = format!("/v1/images/{}", image.id);
    if image.state == ImageState::Creating && image.source == ImageSource::Upload {
        image.links.insert("upload".into(), Link::new("PUT", format!("{path}/content")));
    }
    if image.state != ImageState::Deleting {
        image.links.insert("delete".into(), Link::new("DELETE", path.as_str()));
    }
    image.links.insert("self".into(), Link::new("GET", path));
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_web_addresses_are_taken() {
        for good in
            ["http://a/b", "https://images.example.org/debian-12.qcow2?x=1", "http://10.0.0.1:8080/i", "http://[::1]/i"]
        {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        let long = format!("http://a/{}", "b".repeat(MAX_URL));
        for bad in [
            "",
            "a",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://a/b",
            "http://",
            "http://u:p@a/b",
            "http://a b",
            long.as_str(),
        ] {
            assert_eq!(check_url(bad).map_err(|e| e.fields[0].field.clone()), Err("source.url".to_string()), "{bad}");
        }
    }
}
