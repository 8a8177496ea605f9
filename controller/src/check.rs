//! `kring-controller check`: whether a controller can run here as it is configured, and what to do where it
//! cannot. It changes nothing, and may be run beside a controller.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use shared::units::Bytes;
use shared::wire::host::{Finding, Grade};

use crate::auth::tls;
use crate::bus::rabbit;
use crate::clock::Clock;
use crate::config::Config;
use crate::db::{self, Dialect, probe};

/// Space below which the database will soon refuse to write.
const LEAST_SPACE: Bytes = Bytes::gib(1);
/// Days: a certificate that ends sooner was to be replaced long ago.
const LEAST_LIFE: i64 = 3;
/// How long others may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything that the controller needs.
pub async fn run(config: &Config) -> Vec<Finding> {
    let clock = Clock::default();
    let runs = is_locked(&config.data_dir);
    let mut findings = vec![data(&config.data_dir), port(config, runs)];
    findings.extend(certificate(config, "authority", "ca.pem", &clock));
    findings.extend(certificate(config, "certificate", "controller.pem", &clock));
    findings.extend(database(config, &clock).await);
    findings.extend(broker(config).await);
    for url in config.advertised() {
        findings.push(address(&url).await);
    }
    findings
}

/// The folder with everything that must be kept.
fn data(dir: &Path) -> Finding {
    let shown = dir.display();
    if !dir.is_dir() {
        return Finding::poor("data", format!("{shown} is not there: it is made by `kring-controller init`"));
    }
    if nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_err() {
        return Finding::bad("data", format!("{shown} cannot be written to: give it to the user of the service"));
    }
    match statvfs(dir) {
        Ok(stat) => {
            let free = Bytes(stat.blocks_available() * stat.fragment_size());
            let total = Bytes(stat.blocks() * stat.fragment_size());
            match free < LEAST_SPACE {
                true => Finding::bad("data", format!("{shown} has only {free} free: make room, or set data_dir")),
                false => Finding::good("data", format!("{shown}: {free} free of {total}")),
            }
        }
        Err(error) => Finding::bad("data", format!("{shown}: {error}")),
    }
}

/// Whether a controller has the data folder.
fn is_locked(dir: &Path) -> bool {
    let Ok(file) = std::fs::File::open(dir.join("lock")) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

fn port(config: &Config, runs: bool) -> Finding {
    let listen = config.api.listen;
    if runs {
        return Finding::good("port", format!("{listen}: a controller runs"));
    }
    match TcpListener::bind(listen) {
        Ok(_) => Finding::good("port", format!("{listen} is free")),
        Err(error) => {
            Finding::bad("port", format!("{listen} cannot be listened at ({error}): see `ss -ltnp`, or set api.listen"))
        }
    }
}

/// A certificate that is kept; none before the first start.
fn certificate(config: &Config, what: &str, file: &str, clock: &Clock) -> Option<Finding> {
    let path = config.pki_dir().join(file);
    if !path.exists() {
        return None;
    }
    let shown = path.display();
    Some(match tls::ends_at(&path) {
        Ok(end) => {
            let days = (end.ms() - clock.now().ms()) / (24 * 3600 * 1000);
            if days < LEAST_LIFE {
                let hint = "set the clock (timedatectl), or restart the controller, which makes a new one";
                Finding::bad(what, format!("{shown} ends in {days} days: {hint}"))
            } else {
                Finding::good(what, format!("{shown}, good for {days} days"))
            }
        }
        Err(error) => Finding::bad(what, format!("{error}: restore it from a backup (docs/backup-and-restore.md)")),
    })
}

async fn database(config: &Config, clock: &Clock) -> Vec<Finding> {
    let url = config.database_url();
    // A password is not shown.
    let shown = url.split('@').next_back().unwrap_or_default().to_string();
    let dialect = match Dialect::of(&url) {
        Ok(dialect) => dialect,
        Err(error) => return vec![Finding::bad("database", error.to_string())],
    };
    let file = url.strip_prefix("sqlite:").map(|file| Path::new(file.split('?').next().unwrap_or_default()));
    if file.is_some_and(|file| !file.exists()) {
        return vec![Finding::poor("database", format!("{shown} is not there: it is made by `kring-controller init`"))];
    }
    let asked = tokio::time::timeout(PATIENCE, probe::ask(&url, dialect)).await;
    let answer = match asked.unwrap_or(Err(db::Error::Away)) {
        Ok(answer) => answer,
        Err(error) => {
            let why = match &error {
                db::Error::Sql(error) => error.to_string(),
                other => other.to_string(),
            };
            let hint = "see that it runs and lets this controller in (docs/install-cluster.md)";
            return vec![Finding::bad("database", format!("{shown} cannot be used: {why}; {hint}"))];
        }
    };
    let mut findings = vec![match answer.schema {
        None => Finding::poor("database", format!("{shown} is empty: `kring-controller init` fills it")),
        Some(schema) if schema > probe::newest(dialect) => {
            let text = format!(
                "{shown} was brought to schema {schema} by a newer release, which works for one release back: \
                 install that one here too"
            );
            Finding::poor("database", text)
        }
        Some(schema) => Finding::good("database", format!("{shown}: {}, schema {schema}", answer.version)),
    }];
    if dialect == Dialect::Postgres {
        let of_clock = Finding::of_clock(clock.now().ms() - answer.now_ms);
        let text = of_clock.text.replace("the controller's", "the database's");
        // A running controller follows the database; what else runs here does not.
        let good = of_clock.grade == Grade::Good;
        findings.push(if good { Finding::good("clock", text) } else { Finding::poor("clock", text) });
    }
    findings
}

async fn broker(config: &Config) -> Option<Finding> {
    let settings = config.bus.broker()?;
    Some(match rabbit::probe(&settings).await {
        Ok(place) => Finding::good("broker", format!("{place} lets this controller in")),
        Err(error) => Finding::bad("broker", format!("{error}: see bus.url and docs/install-cluster.md")),
    })
}

/// Whether the name by which agents reach this controller means something.
async fn address(url: &str) -> Finding {
    let place = url.trim_start_matches("https://").trim_end_matches('/').to_string();
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host(place)).await;
    if matches!(found.map(|found| found.map(|mut addresses| addresses.next())), Ok(Ok(Some(_)))) {
        return Finding::good("address", format!("{url}, for agents"));
    }
    Finding::poor("address", format!("{url} is not known here: agents must find it (api.advertise, DNS)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Foundation;
    use crate::config::Source;

    fn config(dir: &Path, set: &[&str]) -> Config {
        let mut sources = vec![Source::Set(format!("data_dir={}", dir.display()))];
        sources.extend(set.iter().map(|text| Source::Set((*text).to_string())));
        Config::from_sources(&sources).unwrap()
    }

    fn of<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
        findings.iter().find(|finding| finding.what == what).unwrap_or_else(|| panic!("no {what} in {findings:?}"))
    }

    #[tokio::test]
    async fn a_controller_that_was_initialised_can_run_and_one_that_runs_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), &["api.listen=127.0.0.1:0", "api.advertise=[\"https://127.0.0.1:8443\"]"]);
        let before = run(&config).await;
        assert_eq!(of(&before, "database").grade, Grade::Poor);
        assert!(
            before.iter().all(|finding| finding.grade != Grade::Bad && finding.what != "certificate"),
            "{before:?}"
        );
        let foundation = Foundation::open(config.clone()).await.unwrap();
        let after = run(&config).await;
        assert!(after.iter().all(|finding| finding.grade == Grade::Good), "{after:?}");
        assert!(of(&after, "port").text.contains("a controller runs"));
        assert!(of(&after, "certificate").text.contains("days"));
        drop(foundation);
        assert!(of(&run(&config).await, "port").text.contains("is free"));
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("api.listen={}", taken.local_addr().unwrap());
        let set = [
            listen.as_str(),
            "database.url=postgres://kring:secret@127.0.0.1:1/kring",
            "bus.url=amqp://kring:secret@127.0.0.1:1",
            "api.advertise=[\"https://nowhere.invalid:8443\"]",
        ];
        std::fs::create_dir(dir.path().join("pki")).unwrap();
        std::fs::write(dir.path().join("pki/ca.pem"), "no certificate").unwrap();
        let findings = run(&config(dir.path(), &set)).await;
        for (what, hint) in [
            ("port", "ss -ltnp"),
            ("database", "docs/install-cluster.md"),
            ("broker", "docs/install-cluster.md"),
            ("authority", "restore it"),
        ] {
            let finding = of(&findings, what);
            assert!(finding.grade == Grade::Bad && finding.text.contains(hint), "{finding}");
            assert!(!finding.text.contains("secret"), "{finding}");
        }
        assert_eq!(of(&findings, "address").grade, Grade::Poor);
    }
}
