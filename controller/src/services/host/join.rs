//! Joining: a one-time token lets a host in, and from then on its certificate does.

use shared::api::host::{Host, HostAdminState, HostCapacity, HostConnection, HostFacts, JoinToken};
use shared::id::HostId;
use shared::units::Bytes;
use shared::wire::host::Joined;
use shared::{Code, Error, Result};

use crate::auth::token;
use crate::cx::Cx;
use crate::db::join_token::Used;
use crate::db::{self, Conn};
use crate::messages::host::{CompareHost, CreateJoinToken, JoinHost, RenewHost};
use crate::services::{Context, announce};
use crate::settings::Settings;

/// How long a token works when nothing else is asked for, in seconds.
const DEFAULT_TTL_S: u32 = 3600;

pub(super) async fn create_token(context: Context, cx: Cx, message: CreateJoinToken) -> Result<JoinToken> {
    let ttl_s = message.body.ttl_s.unwrap_or(DEFAULT_TTL_S);
    if !(10..=7 * 24 * 3600).contains(&ttl_s) {
        return Err(Error::invalid("ttl_s", "give 10 seconds to 7 days"));
    }
    let secret = token::new_join_secret();
    let full = token::join_token(&secret, &context.deps.pki.ca().fingerprint());
    let digest = token::sha256_hex(&secret);
    let created = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let cluster_id = db::cluster::named_or_only(tx.conn(), message.body.cluster_id).await?;
            let expires_at = now.plus_ms(i64::from(ttl_s) * 1000);
            db::join_token::insert(tx, message.id, &digest, cluster_id, expires_at, now).await?;
            Ok(JoinToken { id: message.id, token: full, cluster_id, expires_at })
        })
    });
    created.await
}

pub(super) async fn join(context: Context, message: JoinHost) -> Result<Joined> {
    let JoinHost { id, from, join } = message;
    let refused = || {
        Error::new(Code::Unauthenticated, "the join token is not valid: make a new one with `kring host join-token`")
    };
    let secret = token::join_secret(&join.token).ok_or_else(refused)?;
    let digest = token::sha256_hex(secret);
    let address = join.address.clone().unwrap_or(from);
    let address = match address.parse::<std::net::IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, join.port).to_string(),
        Err(_) if is_host_name(&address) => format!("{address}:{}", join.port),
        Err(_) => {
            return Err(Error::invalid("address", "give an IP address or a host name that the controller can reach"));
        }
    };
    // Signed before the token is used up: a bad request must not cost the token.
    let certificate = context.deps.pki.sign_host(&join.csr, id).map_err(|e| Error::invalid("csr", e.to_string()))?;
    let (settings, now) = (context.deps.settings.clone(), context.deps.clock.now());
    let joined = context.deps.db.write(move |tx| {
        Box::pin(async move {
            let cluster_id = match db::join_token::consume(tx, &digest, id, now).await? {
                Used::Now(cluster) => cluster,
                Used::Unknown => return Err(refused().into()),
                Used::Expired => {
                    let text = "the join token has expired: make a new one with `kring host join-token`";
                    return Err(Error::new(Code::Unauthenticated, text).into());
                }
                Used::Already => {
                    let text = "the join token was used by another host: each host needs one of its own";
                    return Err(Error::new(Code::Unauthenticated, text).into());
                }
            };
            let (vcpus_total, memory_total) = capacity(tx.conn(), &settings, cluster_id, &join.facts).await?;
            let host = Host {
                id,
                name: join.name,
                cluster_id,
                address,
                admin_state: HostAdminState::Enabled,
                connection: HostConnection::Connecting,
                connection_reason: Some("it has just joined".to_string()),
                capacity: HostCapacity { vcpus_total, memory_total, ..Default::default() },
                facts: join.facts,
                last_seen_at: None,
                created_at: now,
                links: Default::default(),
            };
            db::host::join(tx, &host).await?;
            announce(tx, id, "joined", None, &serde_json::json!({ "name": host.name }), now)
        })
    });
    joined.await?;
    context.bus()?.notify(&Cx::system(COMPARE), CompareHost { id });
    tracing::info!(host.id = %id, "a host has joined");
    Ok(told(&context, id, certificate))
}

/// How long the first comparison of a host may take.
const COMPARE: std::time::Duration = std::time::Duration::from_secs(60);

pub(super) async fn renew(context: Context, message: RenewHost) -> Result<Joined> {
    let known = {
        let mut conn = context.deps.db.read().await?;
        db::host::get(&mut conn, message.id).await?.is_some()
    };
    if !known {
        return Err(Error::not_found("host", message.id));
    }
    let certificate =
        context.deps.pki.sign_host(&message.renew.csr, message.id).map_err(|e| Error::invalid("csr", e.to_string()))?;
    Ok(told(&context, message.id, certificate))
}

/// What a host is told that may go on as this one.
fn told(context: &Context, host_id: HostId, certificate: String) -> Joined {
    let ca = context.deps.pki.ca().pem().to_string();
    Joined { host_id, certificate, ca, controllers: context.deps.agents.controllers() }
}

/// A host name by RFC 1123.
fn is_host_name(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// What may be reserved on a host with these facts.
pub(super) async fn capacity(
    conn: &mut Conn,
    settings: &Settings,
    cluster: shared::id::ClusterId,
    facts: &HostFacts,
) -> db::Result<(u32, Bytes)> {
    let cluster = db::cluster::get(conn, cluster).await?.ok_or_else(|| Error::not_found("cluster", cluster))?;
    let vcpus = (f64::from(facts.cpus) * cluster.cpu_overcommit).floor().clamp(0.0, f64::from(u32::MAX)) as u32;
    let usable = facts.memory - Bytes(settings.integer("host.reserved_memory"));
    let memory = Bytes((usable.0 as f64 * cluster.memory_overcommit) as u64);
    Ok((vcpus, memory))
}
