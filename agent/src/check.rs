//! `kring-agent check`: whether this host is fit, and what to do where it is not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::units::Bytes;
use shared::wire::host::VirtMode;
use tokio_util::sync::CancellationToken;

use crate::cmd::Cmd;
use crate::config::{Config, VirtModeChoice};
use crate::facts;
use crate::libvirt::Hypervisor;
use crate::storage::local;

/// Programs that the agent runs, an argument that only asks for a version, and Debian's package.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("qemu-img", "--version", "qemu-utils"),
    ("qemu-system-x86_64", "--version", "qemu-system-x86"),
    ("dnsmasq", "--version", "dnsmasq-base"),
    ("nft", "--version", "nftables"),
    ("ip", "-V", "iproute2"),
];
/// Space below which a host cannot do anything useful.
const LEAST_SPACE: Bytes = Bytes::gib(2);

/// How well one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Poor,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How well it is.
    pub grade: Grade,
    /// What was looked at.
    pub what: &'static str,
    /// What was found, and what to do.
    pub text: String,
}

impl Finding {
    fn new(grade: Grade, what: &'static str, text: impl Into<String>) -> Self {
        Self { grade, what, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.grade {
            Grade::Good => "ok  ",
            Grade::Poor => "warn",
            Grade::Bad => "FAIL",
        };
        write!(f, "{mark}  {:<20}{}", self.what, self.text)
    }
}

/// Looks at everything that the agent needs.
pub async fn run(config: &Config, hypervisor: &dyn Hypervisor) -> Vec<Finding> {
    let mut findings = vec![user(), guests(config.libvirt.virt_mode), libvirt(config, hypervisor).await];
    findings.extend(facts::kvm_closed_to_guests().map(|reason| Finding::new(Grade::Poor, "/dev/kvm", reason)));
    for (program, version, package) in PROGRAMS {
        findings.push(self::program(program, version, package).await);
    }
    findings.push(space("data", &config.agent.data_dir));
    findings.push(space("images", &config.image_dir()));
    findings
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::new(Grade::Good, "user", "root")
    } else {
        Finding::new(Grade::Bad, "user", "the agent makes bridges and namespaces: run it as root")
    }
}

fn guests(choice: VirtModeChoice) -> Finding {
    match facts::virt_mode(choice) {
        (VirtMode::Kvm, _) => Finding::new(Grade::Good, "guests", "run on the processor (KVM)"),
        (VirtMode::Emulated, reason) => {
            Finding::new(Grade::Poor, "guests", format!("are emulated, which is slow: {reason}"))
        }
    }
}

async fn libvirt(config: &Config, hypervisor: &dyn Hypervisor) -> Finding {
    match hypervisor.versions().await {
        Ok(v) => Finding::new(Grade::Good, "libvirt", format!("{}, QEMU {}", v.libvirt, v.qemu)),
        Err(error) => {
            let hint = "install libvirt-daemon-system and start it: systemctl enable --now libvirtd (or: virtlogd -d; libvirtd -d)";
            Finding::new(Grade::Bad, "libvirt", format!("{}: {error}; {hint}", config.libvirt.uri))
        }
    }
}

async fn program(name: &'static str, version: &str, package: &str) -> Finding {
    let run = Cmd::new(name).arg(version).within(Duration::from_secs(10)).run(&CancellationToken::new()).await;
    match run {
        Ok(output) => Finding::new(Grade::Good, name, output.text().lines().next().unwrap_or_default().trim()),
        Err(crate::cmd::Error::Start { .. }) => {
            Finding::new(Grade::Bad, name, format!("is not installed: apt-get install {package}"))
        }
        Err(error) => Finding::new(Grade::Bad, name, format!("{error}; apt-get install --reinstall {package}")),
    }
}

fn space(what: &'static str, path: &Path) -> Finding {
    // The folder may not be there yet: then the nearest one above it tells.
    let there: PathBuf = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned();
    match local::space(&there) {
        Ok((_, free)) if free < LEAST_SPACE => {
            let text = format!("{} has only {free} free: make room, or set another folder", path.display());
            Finding::new(Grade::Bad, what, text)
        }
        Ok((total, free)) => Finding::new(Grade::Good, what, format!("{}: {free} free of {total}", path.display())),
        Err(error) => Finding::new(Grade::Bad, what, format!("{}: {}", path.display(), error.chain())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_found_with_the_package_that_brings_it() {
        let finding = program("no-such-program-of-kring", "--version", "some-package").await;
        assert_eq!(finding.grade, Grade::Bad);
        assert!(finding.to_string().contains("apt-get install some-package"), "{finding}");
        assert_eq!(program("sh", "-c", "dash").await.grade, Grade::Bad);
        assert_eq!(program("true", "--version", "coreutils").await.grade, Grade::Good);
    }

    #[test]
    fn the_space_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        assert_ne!(space("data", Path::new("/no/such/folder")).text, "");
        assert!(space("data", Path::new("/no/such/folder")).text.contains("free"));
    }
}
