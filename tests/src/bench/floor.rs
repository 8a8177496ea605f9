//! The floor below `create` and `api`: a bare program that answers as many requests, makes as many writes durable and sends
//! as many requests to hosts for each VM as the controller did, and knows nothing of VMs.
//!
//! It is a process of its own beside the same load generator ([`measure`]) and the same libraries: HTTPS with
//! kept connections on both sides, the same database, as many writes in a commit ([`serve`]).

pub mod pings;
mod rows;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::wire::CONTROLLER_DNS_NAME;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use rows::Rows;

use super::create::CLIENTS;
use super::load::{Connected, Target};
use super::process::{Spent, Watch};
use crate::client::{Call, Client};
use crate::sim::tls;
use crate::{cmd, wait};

/// What is sent, and what is written of each: about as much as for a VM.
const TEXT: &str = r#"{"name":"vm-0123456789","image_id":"01990000-0000-7000-8000-000000000000","vcpus":1,"memory":268435456,"nics":[{"network_id":"01990000-0000-7000-8000-000000000001","mac":"52:54:00:00:00:00","ip":"10.64.0.1"}],"state":"running","links":{"self":"/v1/vms/01990000-0000-7000-8000-000000000002"},"created_at":"2026-11-22T00:00:00.000Z"}"#;
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const ADDRESS: &str = "address";
/// It is sent, and nobody looks at it.
const TOKEN: &str = "token";

/// Where it answers; it looks at no path.
pub(super) const PATH: &str = "/vm";

/// What is done for each VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Requests of its user.
    pub requests: u64,
    /// Requests to its host.
    pub commands: u64,
    /// Writes, each of which is durable before the next one.
    pub writes: u64,
    /// Writes of several that were made durable by one commit, on average.
    pub together: u64,
}

/// The bare program as a process. It ends when this is dropped.
pub(super) struct Bare {
    /// Its process.
    pub(super) pid: u32,
    url: String,
    ca: String,
    folder: TempDir,
    _process: Child,
    _host: JoinSet<()>,
}

impl Bare {
    /// Starts it, to do this for each request that is posted, with a database on a server when one is given.
    pub(super) async fn start(work: Work, database: Option<&str>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let names = [CONTROLLER_DNS_NAME, "127.0.0.1"].map(str::to_string);
        let certified = rcgen::generate_simple_self_signed(names)?;
        std::fs::write(folder.path().join(CERTIFICATE), certified.cert.pem())?;
        std::fs::write(folder.path().join(KEY), certified.signing_key.serialize_pem())?;
        let mut tasks = JoinSet::new();
        let host = listen(&mut tasks, folder.path(), |_| async { Ok(()) }).await?.to_string();
        let [commands, writes, together] = [work.commands, work.writes, work.together].map(|n| n.to_string());
        let mut arguments: Vec<&OsStr> = vec!["floor".as_ref(), "--folder".as_ref(), folder.path().as_os_str()];
        let numbers = [("--commands", &commands), ("--writes", &writes), ("--together", &together), ("--host", &host)];
        arguments.extend(numbers.iter().flat_map(|(name, value)| [OsStr::new(*name), value.as_ref()]));
        arguments.extend(database.iter().flat_map(|url| [OsStr::new("--database"), url.as_ref()]));
        let program = cmd::program("kring-bench")?;
        let process = cmd::spawn(program.as_os_str(), &arguments, &folder.path().join("log"))?;
        let pid = process.id().context("the bare program is a process")?;
        let url = wait::eventually("the bare program listens", async || {
            let address: SocketAddr = std::fs::read_to_string(folder.path().join(ADDRESS))?.parse()?;
            Ok(format!("https://{address}"))
        })
        .await?;
        Ok(Self { pid, url, ca: certified.cert.pem(), folder, _process: process, _host: tasks })
    }

    /// A configuration that leads to it, as one of `kring` leads to a controller.
    pub(super) fn cli_config(&self) -> anyhow::Result<PathBuf> {
        let (file, Self { url, ca, .. }) = (self.folder.path().join("cli.toml"), self);
        let text = format!(
            "current = \"bare\"\n[contexts.bare]\nurls = [\"{url}\"]\nca_pem = \"\"\"{ca}\"\"\"\ntoken = \"{TOKEN}\"\n"
        );
        std::fs::write(&file, text)?;
        Ok(file)
    }
}

/// Has the bare program do this so often, for as many clients as there are in `create`, with a database on a server
/// when one is given.
pub(super) async fn measure(work: Work, count: usize, database: Option<&str>) -> anyhow::Result<Spent> {
    let bare = Bare::start(work, database).await?;
    let api = Client::new(&bare.url, &bare.ca, Some(TOKEN))?;
    let watch = Watch::of(bare.pid)?;
    stream::iter(0..count)
        .map(|_| async {
            let post = Call::new(Method::POST, PATH).raw("application/json", TEXT.into());
            let gets = (1..work.requests).map(|_| Call::new(Method::GET, PATH));
            for call in std::iter::once(post).chain(gets) {
                let reply = api.send(call).await?;
                anyhow::ensure!(reply.status == 200, "the bare program answers {}: {}", reply.status, reply.text);
            }
            anyhow::Ok(())
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<_>>()
        .await?;
    watch.spent()
}

/// The bare program, until it is killed.
///
/// # Errors
/// When it cannot listen or write.
pub async fn serve(folder: &Path, host: SocketAddr, work: Work, database: Option<&str>) -> anyhow::Result<()> {
    let rows = match database {
        Some(url) => Rows::on_server(url).await?,
        None => Rows::in_file(folder, usize::try_from(work.together)?.max(1))?,
    };
    let target = Target::new(host.to_string(), TOKEN.to_string(), &std::fs::read_to_string(folder.join(CERTIFICATE))?)?;
    let hosts = Arc::new(Hosts { target, kept: Mutex::default() });
    let mut tasks = JoinSet::new();
    let address = listen(&mut tasks, folder, move |request: Request<Incoming>| {
        let (rows, hosts, posted) = (rows.clone(), Arc::clone(&hosts), request.method() == Method::POST);
        async move {
            if !posted {
                return Ok(());
            }
            request.into_body().collect().await?;
            for n in 0..work.writes.max(work.commands) {
                if n < work.writes {
                    rows.add().await?;
                }
                if n < work.commands {
                    hosts.send().await?;
                }
            }
            Ok(())
        }
    })
    .await?;
    // Whoever reads it shall find all of it.
    std::fs::write(folder.join("address.new"), address.to_string())?;
    std::fs::rename(folder.join("address.new"), folder.join(ADDRESS))?;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Answers everything with the same text, after `work`.
async fn listen<W, F>(tasks: &mut JoinSet<()>, folder: &Path, work: W) -> anyhow::Result<SocketAddr>
where
    W: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (address, acceptor) = (listener.local_addr()?, TlsAcceptor::from(server_config(folder)?));
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, work) = (acceptor.clone(), work.clone());
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let done = work(request);
                    async move {
                        let mut response = Response::new(Full::new(Bytes::from_static(TEXT.as_bytes())));
                        if done.await.is_err() {
                            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                // A client that breaks off is the client's business.
                let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(address)
}

/// An open connection, and what drives it.
type Kept = (SendRequest<Full<Bytes>>, JoinSet<()>);

/// Connections to a host that stay open.
struct Hosts {
    target: Target,
    kept: Mutex<Vec<Kept>>,
}

impl Hosts {
    async fn send(&self) -> anyhow::Result<()> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut sender, drivers) = match kept {
            Some(kept) => kept,
            None => {
                let Connected { sender, driver } = self.target.connect().await?;
                let mut drivers = JoinSet::new();
                drivers.spawn(async move {
                    // Why it ended is what the next request says.
                    let _ = driver.await;
                });
                (sender, drivers)
            }
        };
        sender.ready().await?;
        let request = self.target.request(&Method::POST, "/command", Bytes::from_static(TEXT.as_bytes()))?;
        let answer = sender.send_request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "the host answers {}", answer.status());
        answer.into_body().collect().await?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((sender, drivers));
        Ok(())
    }
}

fn server_config(folder: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(folder.join(CERTIFICATE))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY))?;
    let config = ServerConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?))
}
