//! DHCP and DNS of a network: one dnsmasq in the network's namespace, which outlives the agent.
//!
//! Only cards that have a lease get an address. dnsmasq watches the folders of leases and names, so
//! adding a card costs no restart; taking one away costs a SIGHUP, since it does not notice removals.

use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared::api::network::NetworkKind;
use shared::wire::network::NetworkSpec;

use super::files::{FileError, Lease, NetworkDir, write_atomic};
use super::namespace::Namespace;
use super::{Error, METADATA_ADDRESS, Tools};

/// Domain of guests' names.
pub const DOMAIN: &str = "kring.internal";
/// How long the sockets of an earlier dnsmasq may take to be given back.
const SOCKET_PATIENCE: Duration = Duration::from_secs(2);

/// The lines for a card: for DHCP, and for names.
#[must_use]
pub fn lease_lines(lease: &Lease) -> (String, String) {
    let Lease { mac, ip, hostname, .. } = lease;
    (format!("{mac},{ip},{hostname}\n"), format!("{ip} {hostname}.{DOMAIN} {hostname}\n"))
}

/// The configuration. `upstream` are the resolvers that questions are passed on to.
#[must_use]
pub fn config(spec: &NetworkSpec, dir: &NetworkDir, pid_file: &Path, upstream: &[Ipv4Addr], user: &str) -> String {
    let mut text = String::new();
    let service = spec.service_address;
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{args}");
    };
    line(format_args!("# Written by kring-agent for network {}; changes are overwritten.", spec.network_id));
    line(format_args!("user={user}"));
    line(format_args!("pid-file={}", pid_file.display()));
    line(format_args!("interface=eth0"));
    line(format_args!("bind-interfaces"));
    line(format_args!("except-interface=lo"));
    line(format_args!("no-hosts"));
    line(format_args!("no-resolv"));
    line(format_args!("no-poll"));
    line(format_args!("domain-needed"));
    line(format_args!("bogus-priv"));
    line(format_args!("domain={DOMAIN}"));
    line(format_args!("local=/{DOMAIN}/"));
    line(format_args!("local-ttl=10"));
    line(format_args!("cache-size=1000"));
    line(format_args!("hostsdir={}", dir.names().display()));
    for resolver in upstream {
        line(format_args!("server={resolver}"));
    }
    line(format_args!("dhcp-authoritative"));
    // No file of given leases: who gets which address is decided by the controller alone.
    line(format_args!("leasefile-ro"));
    line(format_args!("no-ping"));
    line(format_args!("quiet-dhcp"));
    line(format_args!("dhcp-lease-max={}", 1_u64 << (32 - spec.cidr.prefix_len()).min(20)));
    line(format_args!("dhcp-range={},static,{},12h", spec.cidr.network(), spec.cidr.netmask()));
    line(format_args!("dhcp-hostsdir={}", dir.dhcp().display()));
    // The service of a segment outside has no way out itself: guests ask the network's resolvers directly.
    let resolvers: Vec<String> = spec.dns.iter().map(Ipv4Addr::to_string).collect();
    match (spec.kind, resolvers.is_empty()) {
        (NetworkKind::Bridged, false) => {
            line(format_args!("dhcp-option=option:dns-server,{}", resolvers.join(",")));
        }
        _ => line(format_args!("dhcp-option=option:dns-server,{service}")),
    }
    line(format_args!("dhcp-option=option:mtu,{}", spec.mtu));
    let gateway = spec.gateway.filter(|_| spec.kind != NetworkKind::Isolated);
    match gateway {
        Some(gateway) => {
            line(format_args!("dhcp-option=option:router,{gateway}"));
            // A guest that takes option 121 passes over option 3 (RFC 3442): the default route is in both.
            let routes = format!("{METADATA_ADDRESS}/32,{service},0.0.0.0/0,{gateway}");
            line(format_args!("dhcp-option=option:classless-static-route,{routes}"));
        }
        None => {
            // An option without a value is not sent; without this line dnsmasq names itself as router.
            line(format_args!("dhcp-option=option:router"));
            line(format_args!("dhcp-option=option:classless-static-route,{METADATA_ADDRESS}/32,{service}"));
        }
    }
    text
}

/// The user that dnsmasq becomes after it has opened its sockets.
#[must_use]
pub fn user() -> &'static str {
    let exists = |name| matches!(nix::unistd::User::from_name(name), Ok(Some(_)));
    ["dnsmasq", "nobody"].into_iter().find(|name| exists(name)).unwrap_or("root")
}

/// Resolvers for a network: its own, else the configured ones, else those of the host. None for an
/// isolated network and one on a segment outside: their namespaces reach nobody.
#[must_use]
pub fn upstream(spec: &NetworkSpec, configured: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    match spec.kind {
        NetworkKind::Isolated | NetworkKind::Bridged => Vec::new(),
        NetworkKind::Nat if !spec.dns.is_empty() => spec.dns.clone(),
        NetworkKind::Nat if !configured.is_empty() => configured.to_vec(),
        NetworkKind::Nat => {
            // systemd-resolved listens on a loopback address, which means another host in a namespace;
            // the file with the real ones lies beside it.
            let files = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
            files
                .iter()
                .map(|f| resolvers(&std::fs::read_to_string(f).unwrap_or_default()))
                .find(|r| !r.is_empty())
                .unwrap_or_default()
        }
    }
}

fn resolvers(text: &str) -> Vec<Ipv4Addr> {
    let addresses =
        text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok());
    addresses.filter(|a| !a.is_loopback() && !a.is_unspecified()).collect()
}

/// A network's dnsmasq.
#[derive(Debug)]
pub struct Dnsmasq {
    config_file: PathBuf,
    pid_file: PathBuf,
}

impl Dnsmasq {
    /// The dnsmasq of a network whose files lie in `dir`.
    #[must_use]
    pub fn new(dir: &NetworkDir, namespace: &Namespace) -> Self {
        Self { config_file: dir.0.join("dnsmasq.conf"), pid_file: namespace.path().with_extension("pid") }
    }

    /// Where its pid is.
    #[must_use]
    pub fn pid_file(&self) -> &Path {
        &self.pid_file
    }

    /// Makes it run with this configuration; `reload` makes a running one forget leases that are gone.
    pub async fn ensure(
        &self,
        config: &str,
        namespace: &Namespace,
        tools: &Tools<'_>,
        reload: bool,
    ) -> Result<(), Error> {
        let current = std::fs::read_to_string(&self.config_file).unwrap_or_default();
        match self.running() {
            Some(pid) if current == config => {
                if reload {
                    signal(pid, Signal::SIGHUP);
                }
                return Ok(());
            }
            Some(_) => self.stop(tools).await?,
            None => {}
        }
        write_atomic(&self.config_file, config.as_bytes(), 0o644)?;
        self.start(namespace, tools).await
    }

    /// Starts it. A process that was just killed gives its sockets back a moment after it has lost its
    /// command line, so "in use" is tried again for a while.
    async fn start(&self, namespace: &Namespace, tools: &Tools<'_>) -> Result<(), Error> {
        let conf = format!("--conf-file={}", self.config_file.display());
        let end = tokio::time::Instant::now() + SOCKET_PATIENCE;
        loop {
            let start = tools.cmd("nsenter").arg(namespace.nsenter_arg()).arg("dnsmasq").arg(&conf);
            match start.spawn_daemon(tools.cancel).await {
                Err(crate::cmd::Error::Failed { stderr, .. })
                    if stderr.contains("Address already in use") && tokio::time::Instant::now() < end =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                started => return started.map_err(Error::from),
            }
        }
    }

    /// Makes it forget leases that are gone.
    pub fn reload(&self) {
        if let Some(pid) = self.running() {
            signal(pid, Signal::SIGHUP);
        }
    }

    /// Ends it; a success when it does not run.
    pub async fn stop(&self, tools: &Tools<'_>) -> Result<(), Error> {
        if let Some(pid) = self.running() {
            signal(pid, Signal::SIGTERM);
            tools.until("dnsmasq has ended", || self.running().is_none()).await?;
        }
        match std::fs::remove_file(&self.pid_file) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(FileError::new("removing", &self.pid_file, e).into()),
        }
    }

    /// Its pid, when the process of that number is really this dnsmasq.
    #[must_use]
    pub fn running(&self) -> Option<Pid> {
        let (pid, config_file) = process(&self.pid_file)?;
        (config_file == self.config_file).then_some(pid)
    }
}

/// The dnsmasq that a pid file names, with its configuration file, as its command line says: the
/// number alone may long be another process's.
fn process(pid_file: &Path) -> Option<(Pid, PathBuf)> {
    let pid: i32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let file = command.split(|b| *b == 0).find_map(|arg| arg.strip_prefix(b"--conf-file="))?;
    Some((Pid::from_raw(pid), PathBuf::from(std::ffi::OsStr::from_bytes(file))))
}

/// Ends a dnsmasq whose network has no record any more, when it really is one of those below `networks`.
pub async fn stop_leftover(pid_file: &Path, networks: &Path, tools: &Tools<'_>) -> Result<(), Error> {
    match process(pid_file) {
        Some((_, config_file)) if config_file.starts_with(networks) => {
            Dnsmasq { config_file, pid_file: pid_file.to_owned() }.stop(tools).await
        }
        Some(_) | None => std::fs::remove_file(pid_file).map_err(|e| FileError::new("removing", pid_file, e).into()),
    }
}

fn signal(pid: Pid, signal: Signal) {
    // It may have ended a moment ago; whoever cares looks again.
    let _ = kill(pid, signal);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::network;

    fn render(spec: &NetworkSpec) -> String {
        let dir = NetworkDir("/var/lib/kring/networks/n".into());
        config(spec, &dir, Path::new("/run/kring/netns/ab12cd34.pid"), &upstream(spec, &[]), "dnsmasq")
    }

    #[test]
    fn a_nat_network_has_a_router_and_resolvers() {
        insta::assert_snapshot!("dnsmasq_nat", render(&network()));
    }

    #[test]
    fn an_isolated_network_has_neither() {
        let spec = NetworkSpec { kind: NetworkKind::Isolated, ..network() };
        insta::assert_snapshot!("dnsmasq_isolated", render(&spec));
    }

    #[test]
    fn resolvers_on_the_loopback_address_are_no_use_to_guests() {
        let text =
            "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n nameserver\t192.0.2.2\nnameserver ::1\noptions a\n";
        assert_eq!(resolvers(text), ["192.0.2.1", "192.0.2.2"].map(|a| a.parse::<Ipv4Addr>().unwrap()));
    }

    #[test]
    fn configured_resolvers_come_after_those_of_the_network() {
        let configured: Vec<Ipv4Addr> = vec!["192.0.2.9".parse().unwrap()];
        assert_eq!(upstream(&network(), &configured), network().dns);
        let spec = NetworkSpec { dns: Vec::new(), ..network() };
        assert_eq!(upstream(&spec, &configured), configured);
    }
}
