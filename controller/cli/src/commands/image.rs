//! `kring image`: what vms are made from.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::Value;
use shared::api::image::{CreateImage, DiskFormat, Firmware, Image, ImageSource};
use shared::id::{ImageId, ResourceId as _};
use shared::name::Name;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::verbs::{self, Answer, Change, body, change, change_each};
use crate::cli::{ChangeArgs, Format, ListArgs};
use crate::client::Call;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::table::Cell;
use crate::output::view::{Column, Resource, View};
use crate::output::{line, name_of, note, value};
use crate::progress::bytes_bar;
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an image from a URL or from a file here
    Create(Create),
    /// Send a file for an image whose upload was cut off
    #[command(after_help = "Examples:\n  kring image upload debian ./debian-12.qcow2")]
    Upload {
        /// Name or id
        image: String,
        /// The file
        file: PathBuf,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// List images
    #[command(after_help = "Examples:\n  kring image list\n  kring image list -q 'state = ready' --full")]
    List(ListArgs),
    /// Show all about an image
    #[command(after_help = "Examples:\n  kring image show debian")]
    Show {
        /// Name or id
        image: String,
    },
    /// Delete images
    #[command(after_help = "Examples:\n  kring image delete debian")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// A format on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    Qcow2,
    Raw,
}

impl From<FormatArg> for DiskFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Qcow2 => Self::Qcow2,
            FormatArg::Raw => Self::Raw,
        }
    }
}

/// `kring image create`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").args(["url", "file"]).required(true)))]
#[command(after_help = "\
Examples:
  kring image create debian --url https://example.org/debian-12-generic-amd64.qcow2
  kring image create debian --file ./debian-12.qcow2 --sha256 9f86d081884c7d65...
  kring image create windows --file ./win.raw --format raw --uefi")]
pub struct Create {
    /// Its name
    name: Name,
    /// Download it from here: http:// or https://
    #[arg(long)]
    url: Option<String>,
    /// Send this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// SHA-256 that it must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Format that it must have; found out when not given
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Vms from it boot by UEFI instead of BIOS
    #[arg(long)]
    uefi: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create(create) => make(ctx, create).await,
        Command::Upload { image, file, change } => {
            let id = resolve::id(&ctx.client, Noun::IMAGE, &image).await?;
            upload(ctx, &image, id, &file, &change).await
        }
        Command::List(args) => verbs::list::<Image>(ctx, &args).await,
        Command::Show { image } => verbs::show::<Image>(ctx, &image).await,
        Command::Delete { images, change } => {
            let make = |name: &str, id: Uuid| Change::delete(Noun::IMAGE, name, id, "deleted");
            change_each(ctx, Noun::IMAGE, &images, &change, make).await
        }
    }
}

async fn make(ctx: &Ctx, args: Create) -> Result<()> {
    let id = ImageId::new();
    let name = args.name.as_str().to_string();
    let source = match &args.url {
        Some(url) => ImageSource::Url { url: url.clone() },
        None => ImageSource::Upload,
    };
    if let Some(file) = &args.file {
        // Found out before an image is made that nothing will ever be sent for.
        open(file).await?;
    }
    let request = CreateImage {
        id: Some(id),
        name: args.name,
        source,
        sha256: args.sha256,
        format: args.format.map(DiskFormat::from),
        firmware: if args.uefi { Firmware::Uefi } else { Firmware::Bios },
    };
    let created = Change::create(Noun::IMAGE, &name, id.uuid(), body(&request)?);
    let Some(file) = args.file.filter(|_| !args.change.dry_run) else {
        return change(ctx, created, &args.change).await;
    };
    // The image waits for its content, so there is nothing to wait for until that is sent.
    let at_once = ChangeArgs { no_wait: true, ..args.change.clone() };
    verbs::submit(ctx, &created, &at_once).await?;
    upload(ctx, &name, id.uuid(), &file, &args.change).await
}

async fn open(file: &Path) -> Result<(tokio::fs::File, u64)> {
    let cannot = |e: std::io::Error| CliError::Usage(format!("cannot read {}: {e}", file.display()));
    let opened = tokio::fs::File::open(file).await.map_err(cannot)?;
    let metadata = opened.metadata().await.map_err(cannot)?;
    match metadata.len() {
        _ if !metadata.is_file() => Err(CliError::Usage(format!("{} is not a file", file.display()))),
        0 => Err(CliError::Usage(format!("{} is empty", file.display()))),
        length => Ok((opened, length)),
    }
}

async fn upload(ctx: &Ctx, name: &str, id: Uuid, file: &Path, args: &ChangeArgs) -> Result<()> {
    let since = Instant::now();
    let (opened, length) = open(file).await?;
    let bar = bytes_bar(&format!("image {name}: sending"), length);
    let sent = bar.clone();
    let pieces = ReaderStream::with_capacity(opened, 256 * 1024).inspect(move |piece| {
        sent.inc(piece.as_ref().map_or(0, |bytes| bytes.len() as u64));
    });
    let path = format!("{}/content", Noun::IMAGE.path_of(id));
    let sending = ctx.client.upload(&path, length, reqwest::Body::wrap_stream(pieces));
    let result = tokio::select! {
        result = sending => result,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted { job: None }),
    };
    bar.finish_and_clear();
    let reply = result.inspect_err(|error| {
        if error.exit_code() == crate::error::exit::UNREACHABLE || matches!(error, CliError::Interrupted { .. }) {
            note(&format!(
                "The image waits for its content; send it again: kring image upload {name} {}",
                file.display()
            ));
        }
    })?;
    let change = Change { method: Method::PUT, ..Change::create(Noun::IMAGE, name, id, Value::Null) };
    let answer = Answer::read(reply.body)?;
    let answer = match answer {
        // A server that answers nothing more than "got it".
        Answer::Done(body) if body.is_null() => {
            Answer::Done(ctx.client.send(Call::get(&Noun::IMAGE.path_of(id))).await?.body)
        }
        other => other,
    };
    let result = verbs::settle(ctx, &change, args, answer, since).await?;
    match ctx.format {
        Format::Table => Ok(()),
        Format::Name if args.no_wait => Ok(()),
        Format::Name => line(&name_of(&result)),
        format => value(&result, format),
    }
}

impl Resource for Image {
    const NOUN: Noun = Noun::IMAGE;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |image, _| Cell::new(&image.name)),
        Column::new("state", |image, _| Cell::state(image.state.as_str())),
        Column::new("format", |image, _| Cell::new(image.format.map_or("", DiskFormat::as_str))),
        Column::number("size", |image, _| Cell::new(image.size.map(|s| s.to_string()).unwrap_or_default())),
        Column::number("disk", |image, _| Cell::new(image.virtual_size.map(|s| s.to_string()).unwrap_or_default())),
        Column::new("firmware", |image, _| Cell::new(format!("{:?}", image.firmware).to_lowercase())),
        Column::wide("source", |image, _| match &image.source {
            ImageSource::Url { url } => Cell::new(url),
            ImageSource::Upload => Cell::new("upload"),
        }),
        Column::new("age", |image, view| view.age(image.created_at)),
        Column::new("id", |image, view| view.id(image.id.uuid())),
    ];

    fn details(&self, _view: &View) -> Vec<(String, Vec<Cell>)> {
        vec![
            ("sha256".to_string(), vec![Cell::new(self.sha256.as_deref().unwrap_or_default())]),
            ("created".to_string(), vec![Cell::new(self.created_at)]),
        ]
    }
}
