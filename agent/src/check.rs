//! `kring-agent check`: whether this host is fit, and what to do where it is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::DATE;
use shared::time::Timestamp;
use shared::units::Bytes;
use shared::wire::host::{Finding, VirtMode, release_numbers};
use tokio_util::sync::CancellationToken;

use crate::cmd::Cmd;
use crate::config::{Config, VirtModeChoice};
use crate::facts;
use crate::identity::{self, Store};
use crate::libvirt::Hypervisor;
use crate::storage::local;

/// A program that a host needs.
struct Program {
    name: &'static str,
    /// An argument that only asks for a version.
    version: &'static str,
    /// The package that brings it: Debian's, and that of Fedora and RHEL.
    package: [&'static str; 2],
}

const PROGRAMS: &[Program] = &[
    Program { name: "qemu-img", version: "--version", package: ["qemu-utils", "qemu-img"] },
    Program { name: QEMU, version: "--version", package: ["qemu-system-x86", "qemu-kvm"] },
    Program { name: "dnsmasq", version: "--version", package: ["dnsmasq-base", "dnsmasq"] },
    Program { name: "nft", version: "--version", package: ["nftables", "nftables"] },
    Program { name: "ip", version: "-V", package: ["iproute2", "iproute"] },
];
const QEMU: &str = "qemu-system-x86_64";
/// Where RHEL has it; libvirt finds either by itself.
const QEMU_OF_RHEL: &str = "/usr/libexec/qemu-kvm";
/// Space below which a host cannot do anything useful.
const LEAST_SPACE: Bytes = Bytes::gib(2);

/// Oldest libvirt and QEMU that guests are run and moved with.
const OLDEST: (&str, &str) = ("8.0.0", "6.2.0");
/// How long a controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything that the agent needs.
pub async fn run(config: &Config, hypervisor: &dyn Hypervisor) -> Vec<Finding> {
    let mut findings = vec![user(), guests(config.libvirt.virt_mode), libvirt(config, hypervisor).await];
    findings.extend(facts::kvm_closed_to_guests().map(|reason| Finding::poor("/dev/kvm", reason)));
    for needed in PROGRAMS {
        findings.push(program(needed).await);
    }
    findings.push(space("data", &config.agent.data_dir));
    findings.push(space("images", &config.image_dir()));
    findings.push(moving(&config.libvirt.migration_dir));
    findings
}

/// Looks at what only a host that does not serve yet can be asked about: its port, its identity, its controllers.
pub async fn from_outside(config: &Config) -> Vec<Finding> {
    let mut findings = vec![port(config)];
    let store = Store::new(&config.agent.data_dir);
    let identity = match store.load(config.controller.timeout()) {
        Ok(identity) => identity,
        Err(identity::Error::NotJoined) => {
            findings.push(Finding::poor("identity", "has joined no cloud yet: kring-agent join"));
            return findings;
        }
        Err(error) => {
            let text = format!("{}: kring-agent join, with a new token", crate::log::chain(&error));
            findings.push(Finding::bad("identity", text));
            return findings;
        }
    };
    findings.push(Finding::good("identity", format!("host {}", identity.host_id)));
    let mut urls = config.controller.urls.clone();
    urls.extend(store.told_controllers().unwrap_or_default());
    urls.extend(identity.controllers.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    for url in urls.into_iter().filter(|url| seen.insert(url.trim_end_matches('/').to_string())) {
        findings.extend(controller(&identity.client, &url).await);
    }
    findings
}

/// Whether a controller is reached, speaks for the cloud that this host has joined, and has the same time.
async fn controller(client: &reqwest::Client, url: &str) -> Vec<Finding> {
    let asked = client.get(format!("{}/healthz", url.trim_end_matches('/'))).timeout(PATIENCE).send().await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let text = crate::log::chain(&error);
            return vec![Finding::bad("controller", format!("{url} cannot be used: {text}; {}", advice(&text, true)))];
        }
    };
    let mut findings = vec![Finding::good("controller", format!("{url} answers"))];
    if let Some(theirs) = answer.headers().get(DATE).and_then(|date| Timestamp::from_http_date(date.to_str().ok()?)) {
        findings.push(Finding::of_clock(now_ms() - theirs.ms()));
    }
    findings
}

/// What to do about a failure on the way to a controller, by its text; a host that has `joined` knows the cloud's
/// authority by itself, another one by its token.
#[must_use]
pub fn advice(text: &str, joined: bool) -> &'static str {
    let text = text.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["expired", "notvalidyet", "not valid yet"]) {
        if joined {
            "a certificate is not valid now: set the clock, on both sides (timedatectl); a host that was off for months joins again, with a new token and --name and --address as before"
        } else {
            "a certificate is not valid now: set the clock, on both sides (timedatectl)"
        }
    } else if says(&["unknownissuer", "unknown issuer", "badsignature"]) {
        if joined {
            "its certificate is of another cloud than the one that this host has joined: kring-agent leave, then join"
        } else {
            "it is not of the cloud that made the token: give a controller's own address, or one whose balancer lets TLS through"
        }
    } else {
        "port 8443 must be reachable from this host (docs/ports.md)"
    }
}

/// The wall clock.
#[must_use]
pub fn now_ms() -> i64 {
    Timestamp::now().ms()
}

/// Whether the agent's port is free, when no agent runs.
fn port(config: &Config) -> Finding {
    let listen = config.agent.listen;
    if crate::service::claim(&config.agent.data_dir).is_err() {
        return Finding::good("port", format!("{listen}: an agent runs"));
    }
    match std::net::TcpListener::bind(listen) {
        Ok(_) => Finding::good("port", format!("{listen} is free")),
        Err(error) => {
            let text = format!("{listen} cannot be listened at ({error}): see `ss -ltnp`, or set [agent] listen");
            Finding::bad("port", text)
        }
    }
}

/// Whether guests can come in from other hosts.
fn moving(dir: &Path) -> Finding {
    let parent = dir.parent().unwrap_or(dir);
    if parent.is_dir() {
        return Finding::good("moving guests", format!("by sockets in {}", dir.display()));
    }
    let text = format!("{} is not there: start libvirt once, or set [libvirt] migration_dir", parent.display());
    Finding::poor("moving guests", text)
}

fn is_older(version: &str, than: &str) -> bool {
    // One that is not known is not older.
    !version.is_empty() && release_numbers(version) < release_numbers(than)
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::good("user", "root")
    } else {
        Finding::bad("user", "the agent makes bridges and namespaces: run it as root")
    }
}

fn guests(choice: VirtModeChoice) -> Finding {
    match facts::virt_mode(choice) {
        (VirtMode::Kvm, _) => Finding::good("guests", "run on the processor (KVM)"),
        (VirtMode::Emulated, reason) => Finding::poor("guests", format!("are emulated, which is slow: {reason}")),
    }
}

async fn libvirt(config: &Config, hypervisor: &dyn Hypervisor) -> Finding {
    match hypervisor.versions().await {
        Ok(v) if is_older(&v.libvirt, OLDEST.0) || is_older(&v.qemu, OLDEST.1) => {
            let text =
                format!("{} with QEMU {} is too old: {} and {} are needed", v.libvirt, v.qemu, OLDEST.0, OLDEST.1);
            Finding::bad("libvirt", text)
        }
        Ok(v) => Finding::good("libvirt", format!("{}, QEMU {}", v.libvirt, v.qemu)),
        Err(error) => {
            let install = install(["libvirt-daemon-system", "libvirt-daemon-driver-qemu"]);
            let hint =
                "systemctl enable --now libvirtd (or virtqemud.socket; without systemd: virtlogd -d; libvirtd -d)";
            Finding::bad("libvirt", format!("{}: {error}; start it: {hint}; or {install}", config.libvirt.uri))
        }
    }
}

/// How a package is installed here.
fn install(package: [&str; 2]) -> String {
    let is_there = |name: &str| Path::new("/usr/bin").join(name).exists();
    if is_there("dnf") && !is_there("apt-get") {
        format!("dnf install {}", package[1])
    } else {
        format!("apt-get install {}", package[0])
    }
}

async fn program(needed: &Program) -> Finding {
    let of_rhel = needed.name == QEMU && Path::new(QEMU_OF_RHEL).exists();
    let path = if of_rhel { QEMU_OF_RHEL } else { needed.name };
    let run = Cmd::new(path).arg(needed.version).within(Duration::from_secs(10)).run(&CancellationToken::new()).await;
    let install = || install(needed.package);
    match run {
        Ok(output) => Finding::good(needed.name, output.text().lines().next().unwrap_or_default().trim()),
        Err(crate::cmd::Error::Start { .. }) => Finding::bad(needed.name, format!("is not installed: {}", install())),
        Err(error) => Finding::bad(needed.name, format!("{error}; see to its package: {}", install())),
    }
}

fn space(what: &'static str, path: &Path) -> Finding {
    // The folder may not be there yet: then the nearest one above it tells.
    let there: PathBuf = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned();
    match local::space(&there) {
        Ok((_, free)) if free < LEAST_SPACE => {
            let text = format!("{} has only {free} free: make room, or set another folder", path.display());
            Finding::bad(what, text)
        }
        Ok((total, free)) => Finding::good(what, format!("{}: {free} free of {total}", path.display())),
        Err(error) => Finding::bad(what, format!("{}: {}", path.display(), error.chain())),
    }
}

#[cfg(test)]
mod tests {
    use shared::wire::host::Grade;

    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_found_with_the_package_that_brings_it() {
        let needed = |name, version| Program { name, version, package: ["some-package"; 2] };
        let finding = program(&needed("no-such-program-of-kring", "--version")).await;
        assert_eq!(finding.grade, Grade::Bad);
        assert!(finding.text.contains("install some-package"), "{finding:?}");
        assert_eq!(program(&needed("sh", "-c")).await.grade, Grade::Bad);
        assert_eq!(program(&needed("true", "--version")).await.grade, Grade::Good);
    }

    #[test]
    fn what_is_old_and_what_is_late_is_found() {
        assert!(is_older("7.10.0", "8.0.0") && is_older("6.1.9", "6.2.0"));
        assert!(!is_older("10.0.0", "8.0.0") && !is_older("8.0.0", "8.0.0") && !is_older("", "8.0.0"));
        assert_eq!(Finding::of_clock(3_600_000).grade, Grade::Bad);
        assert!(Finding::of_clock(-3_600_000).text.contains("3600 s behind"));
        assert_eq!(Finding::of_clock(-900).grade, Grade::Good);
    }

    #[test]
    fn a_failure_on_the_way_to_a_controller_comes_with_what_to_do() {
        let (early, stranger) =
            ("invalid peer certificate: certificate not valid yet", "invalid certificate: UnknownIssuer");
        assert!(advice(early, false).contains("set the clock") && advice("Expired", true).contains("set the clock"));
        assert!(advice(stranger, true).contains("kring-agent leave"));
        assert!(advice(stranger, false).contains("cloud that made the token"));
        assert!(advice("connection refused", false).contains("8443"));
    }

    #[test]
    fn the_space_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        assert_ne!(space("data", Path::new("/no/such/folder")).text, "");
        assert!(space("data", Path::new("/no/such/folder")).text.contains("free"));
    }
}
