//! A host of its own for each test: namespaces with a libvirt, made by `tests/lab/host-ns.sh`, in
//! which the test's own program is run once more.
#![expect(clippy::disallowed_methods, reason = "the test starts the lab, not the agent")]

use std::path::PathBuf;
use std::process::Command;

const INSIDE: &str = "KRING_LAB_HOST";

fn lab(script: &str) -> Command {
    Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/lab").join(script))
}

/// Takes the host down, also when the test fails.
struct Host(String);

impl Drop for Host {
    fn drop(&mut self) {
        let down = lab("host-ns.sh").args(["down", &self.0]).status();
        assert!(down.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}

fn missing() -> Option<&'static str> {
    let programs = [
        "/usr/sbin/libvirtd",
        "/usr/sbin/virtlogd",
        "/usr/bin/qemu-system-x86_64",
        "/usr/sbin/dnsmasq",
        "/usr/sbin/nft",
    ];
    if !nix::unistd::Uid::effective().is_root() {
        return Some("it needs root");
    }
    programs.into_iter().find(|p| !PathBuf::from(p).exists())
}

/// Runs `test`, whose name in this program is `name`, on a host of its own; skipped, with the reason, where there can be none.
pub fn on_host(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let _ = tracing_subscriber::fmt().with_env_filter("warn,agent=info").with_test_writer().try_init();
        agent::identity::tls::install_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test);
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        return;
    }
    if let Some(missing) = missing() {
        println!("skipped: {missing} is missing");
        return;
    }
    // At most 31 characters; the tests of one process run side by side.
    let short = name.rsplit("::").next().unwrap_or(name).replace('_', "-");
    let short: String = short.chars().take(18).collect();
    let host = Host(format!("{short}-{}", std::process::id()));
    let up = lab("host-ns.sh").args(["up", &host.0]).output().unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let program = std::env::current_exe().unwrap();
    let inside = lab("host-ns.sh")
        .args(["exec", &host.0, "env", &format!("{INSIDE}=1")])
        .arg(program)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .status()
        .unwrap();
    assert!(inside.success(), "the test failed on its host");
}

/// The disk image of the test guest, built when it is not in the cache.
pub fn guest_image(uefi: bool) -> PathBuf {
    let built = lab("guest/build.sh").args(uefi.then_some("--uefi")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    PathBuf::from(String::from_utf8_lossy(&built.stdout).trim().lines().last().unwrap())
}

/// Runs a shell line on the host of the test; its standard output, trimmed.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Makes a machine outside of the host, reached by routing; its address. (The lab's own bridge takes
/// another hardware address whenever a host comes or goes, and is then out of reach for a while.)
pub fn outside() -> &'static str {
    sh("ip netns add outside; ip link add w-outside type veth peer name eth0 netns outside; \
        ip addr add 198.51.100.1/24 dev w-outside; ip link set w-outside up; \
        ip -n outside addr add 198.51.100.2/24 dev eth0; ip -n outside link set eth0 up");
    "198.51.100.2"
}

/// What is on the host of Kring's networks; "0" when there is nothing.
pub fn left_over() -> String {
    sh(
        "ip -o link | grep -c 'k[rv]-'; nft list tables | grep kring; pgrep dnsmasq; grep '/[.]tmp.*netns/kring-' /proc/self/mounts",
    )
}
