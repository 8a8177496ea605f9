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

/// Runs `outside` in this process, with a folder, and `inside` on two hosts of their own, with the same folder
/// and the host's number, as soon as there is a file `go` in it; they end when `outside` has ended. Skipped as
/// [`on_host`] is.
pub fn on_two_hosts<I: Future<Output = ()>, O: Future<Output = ()>>(
    name: &str,
    inside: impl FnOnce(PathBuf, usize) -> I,
    outside: impl FnOnce(PathBuf) -> O,
) {
    const FOLDER: &str = "KRING_LAB_FOLDER";
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(number) = std::env::var_os(INSIDE) {
        let _ = tracing_subscriber::fmt().with_env_filter("warn,agent=info").with_test_writer().try_init();
        agent::identity::tls::install_provider();
        let dir = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let runtime = runtime();
        runtime.block_on(inside(dir, number.to_str().unwrap().parse().unwrap()));
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        return;
    }
    if let Some(missing) = missing() {
        println!("skipped: {missing} is missing");
        return;
    }
    let dir = tempfile::Builder::new().prefix("kring-real-").tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let hosts: Vec<Host> = (0..2).map(|n| Host(format!("two{n}-{}", std::process::id()))).collect();
    for host in &hosts {
        let up = lab("host-ns.sh").args(["up", &host.0]).output().unwrap();
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    }
    let (folder, program) = (dir.path().to_owned(), std::env::current_exe().unwrap());
    let test = name.to_string();
    let names: Vec<String> = hosts.iter().map(|host| host.0.clone()).collect();
    let children = std::thread::spawn(move || {
        while !folder.join("go").exists() && !folder.join("stop").exists() {
            std::thread::yield_now();
        }
        let children: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| {
                let variables = [format!("{INSIDE}={n}"), format!("{FOLDER}={}", folder.display())];
                let mut command = lab("host-ns.sh");
                command.args(["exec", name, "env"]).args(variables).arg(&program);
                command.args([&test, "--exact", "--nocapture", "--test-threads=1"]).spawn().unwrap()
            })
            .collect();
        children.into_iter().all(|mut child| child.wait().is_ok_and(|status| status.success()))
    });
    let ended =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime().block_on(outside(dir.path().to_owned()))));
    std::fs::write(dir.path().join("stop"), "").unwrap();
    let good = children.join().unwrap();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
    assert!(good, "a host has failed");
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
