//! Which controller to talk to, and as whom: flags, environment, the user's file, the machine's file.
//!
//! Owns the file format (`current`, `[contexts.<name>]`). A token is sent only to the controller that
//! it was given for: an address from a flag or the environment does not take the token of a file.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::cli::Connection;
use crate::error::{CliError, Result};

/// The machine's file, for operators on a controller.
const SYSTEM_FILE: &str = "/etc/kring/cli.toml";

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The context that is taken when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Controllers by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// A controller, or several that are one, and how to be let in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://address:port`, tried in this order.
    pub urls: Vec<String>,
    /// File with the certificate authority, PEM; a relative path counts from the file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The certificate authority itself, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The environment variables that are read, taken once.
#[derive(Clone, Debug, Default)]
pub struct Env {
    pub url: Option<String>,
    pub token: Option<String>,
    pub ca: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub home: Option<PathBuf>,
    pub xdg: Option<PathBuf>,
}

impl Env {
    /// As this process was started.
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self {
            url: text("KRING_URL"),
            token: text("KRING_TOKEN"),
            ca: text("KRING_CA").map(PathBuf::from),
            config: text("KRING_CONFIG").map(PathBuf::from),
            home: text("HOME").map(PathBuf::from),
            xdg: text("XDG_CONFIG_HOME").map(PathBuf::from),
        }
    }
}

/// Where requests go and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Addresses of controllers, in the order of trying.
    pub urls: Vec<Url>,
    /// Certificate authority, PEM; none: those of the system.
    pub ca_pem: Option<String>,
    /// Bearer token.
    pub token: Option<String>,
    /// The context that it came from.
    pub context: Option<String>,
}

/// The user's own file: where `kring login` writes.
pub fn user_file(flags: &Connection, env: &Env) -> Result<PathBuf> {
    if let Some(path) = flags.config.as_ref().or(env.config.as_ref()) {
        return Ok(path.clone());
    }
    let base = env.xdg.clone().or_else(|| env.home.as_ref().map(|home| home.join(".config")));
    match base {
        Some(base) => Ok(base.join("kring/config.toml")),
        None => Err(CliError::Config {
            message: "there is no home folder to keep the configuration in".into(),
            hint: "set HOME, or give --config FILE".into(),
        }),
    }
}

/// Reads a file; one that does not exist reads as empty.
pub fn load(path: &Path) -> Result<File> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(e) => {
            return Err(CliError::Config {
                message: format!("cannot read {}: {e}", path.display()),
                hint: "make it readable for you, or give another with --config".into(),
            });
        }
    };
    toml::from_str(&text).map_err(|e| CliError::Config {
        message: format!("{} is not a valid configuration: {}", path.display(), e.to_string().trim_end()),
        hint: "correct it, or move it away and log in again: kring login".into(),
    })
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn save(path: &Path, file: &File) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    let text = toml::to_string_pretty(file).map_err(|e| CliError::Config {
        message: format!("{}: {e}", doing()),
        hint: "this is a defect of kring; please report it".into(),
    })?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| CliError::io(doing(), e))?;
    let draft = folder.join(format!(".config.{}.tmp", uuid::Uuid::new_v4()));
    let write = || -> std::io::Result<()> {
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().map_err(|e| {
        // The draft holds a token; it must not stay behind. It may not exist, which is just as good.
        let _ = std::fs::remove_file(&draft);
        CliError::io(doing(), e)
    })
}

/// The user's file when it names a controller, else the machine's.
fn effective_file(flags: &Connection, env: &Env) -> Result<(PathBuf, File)> {
    let explicit = flags.config.is_some() || env.config.is_some();
    let path = match user_file(flags, env) {
        Ok(path) => path,
        Err(_) if !explicit => PathBuf::from(SYSTEM_FILE),
        Err(e) => return Err(e),
    };
    let mut file = load(&path)?;
    let mut path = path;
    if file.contexts.is_empty() && !explicit {
        path = PathBuf::from(SYSTEM_FILE);
        file = match load(&path) {
            Ok(file) => file,
            // Another user's secret: as if it were not there.
            Err(_) if !readable(&path) => File::default(),
            Err(e) => return Err(e),
        };
    }
    warn_if_open(&path, &file);
    Ok((path, file))
}

fn readable(path: &Path) -> bool {
    std::fs::File::open(path).is_ok()
}

fn warn_if_open(path: &Path, file: &File) {
    let secret = file.contexts.values().any(|c| c.token.is_some());
    let open = std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o007 != 0);
    if secret && open {
        crate::output::note(&format!(
            "warning: {p} holds a token and everybody can read it; close it: chmod 600 {p}",
            p = path.display()
        ));
    }
}

/// Decides where to go: flags, then the environment, then the files.
pub fn target(flags: &Connection, env: &Env) -> Result<Target> {
    let empty = Env::default();
    // A context that is named on the command line counts more than the environment.
    let env_values = if flags.context.is_some() { &empty } else { env };
    let given_urls = if flags.controller.is_empty() {
        env_values.url.as_deref().map(list_of).unwrap_or_default()
    } else {
        flags.controller.iter().flat_map(|urls| list_of(urls)).collect()
    };
    let (path, file) = effective_file(flags, env)?;
    let (name, context) = match choose(&file, flags.context.as_deref(), &path)? {
        Some((name, context)) => (Some(name), context),
        None => (None, Context::default()),
    };
    let from_file = given_urls.is_empty() || given_urls.iter().all(|u| context.urls.contains(u));
    let urls = if given_urls.is_empty() { context.urls.clone() } else { given_urls };
    if urls.is_empty() {
        return Err(CliError::NotLoggedIn);
    }
    let context = if from_file { context } else { Context::default() };
    let ca_pem = match flags.ca.as_ref().or(env_values.ca.as_ref()) {
        Some(ca) => Some(read_ca(ca)?),
        None => context_ca(&context, &path)?,
    };
    let token = flags.token.clone().or_else(|| env_values.token.clone()).or(context.token);
    let urls = parse_urls(&urls)?;
    Ok(Target { urls, ca_pem, token, context: name.filter(|_| from_file) })
}

/// The addresses in a list with commas.
fn list_of(text: &str) -> Vec<String> {
    text.split(',').map(|url| url.trim().to_string()).filter(|url| !url.is_empty()).collect()
}

/// Addresses, each once.
pub fn parse_urls(texts: &[String]) -> Result<Vec<Url>> {
    let mut urls: Vec<Url> = Vec::new();
    for text in texts {
        let url = parse_url(text)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

fn choose(file: &File, wanted: Option<&str>, path: &Path) -> Result<Option<(String, Context)>> {
    let known = || file.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
    if let Some(name) = wanted.or(file.current.as_deref()) {
        return match file.contexts.get(name) {
            Some(context) => Ok(Some((name.to_string(), context.clone()))),
            None if wanted.is_none() && file.contexts.is_empty() => Ok(None),
            None => Err(CliError::Config {
                message: format!("there is no context {name} in {}", path.display()),
                hint: match known() {
                    names if names.is_empty() => "log in first: kring login --url URL --ca ca.pem --token-stdin".into(),
                    names => format!("it has: {names}"),
                },
            }),
        };
    }
    match file.contexts.len() {
        0 => Ok(None),
        1 => Ok(file.contexts.iter().next().map(|(name, context)| (name.clone(), context.clone()))),
        _ => Err(CliError::Config {
            message: format!("{} has several contexts and none is the current one", path.display()),
            hint: format!("choose with --context, or for good: kring context use NAME ({})", known()),
        }),
    }
}

fn context_ca(context: &Context, file: &Path) -> Result<Option<String>> {
    match (&context.ca_pem, &context.ca) {
        (Some(pem), _) => Ok(Some(pem.clone())),
        (None, Some(ca)) => read_ca(&file.parent().unwrap_or(Path::new(".")).join(ca)).map(Some),
        (None, None) => Ok(None),
    }
}

/// The text of a certificate authority's file.
pub fn read_ca(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| CliError::Config {
        message: format!("cannot read the certificate authority {}: {e}", path.display()),
        hint: "the controller keeps it as ca.pem in its data folder; copy it here".into(),
    })
}

/// Reads an address of a controller. Plain HTTP is taken for this machine alone.
pub fn parse_url(text: &str) -> Result<Url> {
    let bad = |why: &str| CliError::Config {
        message: format!("\"{text}\" is not an address of a controller: {why}"),
        hint: "give it as https://ADDRESS:PORT".into(),
    };
    let url: Url = text.trim().parse().map_err(|_| bad("it is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("only scheme, address and port belong in it"));
    }
    match url.scheme() {
        "https" if url.has_host() => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(bad("without TLS the token could be read on the way; http is for this machine alone")),
        _ => Err(bad("it does not begin with https://")),
    }
}

/// Whether a URL names this machine.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(text: &str) -> (tempfile::TempDir, Env) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let env = Env { config: Some(path), ..Env::default() };
        (dir, env)
    }

    const TWO: &str = r#"
        current = "a"
        [contexts.a]
        urls = ["https://10.0.0.1:8443", "https://10.0.0.2:8443"]
        ca_pem = "PEM A"
        token = "token-a"
        [contexts.b]
        urls = ["https://b.example"]
        token = "token-b"
    "#;

    #[test]
    fn the_current_context_is_taken_and_a_flag_chooses_another() {
        let (_dir, env) = setup(TWO);
        let a = target(&Connection::default(), &env).unwrap();
        assert_eq!((a.urls.len(), a.token.as_deref(), a.ca_pem.as_deref()), (2, Some("token-a"), Some("PEM A")));
        let flags = Connection { context: Some("b".into()), ..Connection::default() };
        let with_env = Env { url: Some("https://c.example".into()), token: Some("t".into()), ..env };
        let b = target(&flags, &with_env).unwrap();
        assert_eq!((b.urls[0].as_str(), b.token.as_deref()), ("https://b.example/", Some("token-b")));
    }

    #[test]
    fn a_files_token_never_goes_to_another_address() {
        let (_dir, env) = setup(TWO);
        let env = Env { url: Some("https://elsewhere.example".into()), ..env };
        let t = target(&Connection::default(), &env).unwrap();
        assert_eq!((t.token, t.ca_pem, t.context), (None, None, None));
    }

    #[test]
    fn one_address_of_the_context_keeps_its_token() {
        let (_dir, env) = setup(TWO);
        let flags = Connection { controller: vec!["https://10.0.0.2:8443".into()], ..Connection::default() };
        let t = target(&flags, &env).unwrap();
        assert_eq!((t.urls.len(), t.token.as_deref()), (1, Some("token-a")));
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        for good in ["http://127.0.0.1:1", "http://[::1]:8080", "http://localhost", "https://10.0.0.1:8443"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in
            ["http://10.0.0.1", "ftp://x", "10.0.0.1:8443", "https://user:pw@x", "", "http://127.0.0.1.evil.example"]
        {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_saved_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/config.toml");
        let context = Context {
            urls: vec!["https://x".into()],
            ca_pem: Some("-----BEGIN\nline\n".into()),
            token: Some("t\"'".into()),
            ..Context::default()
        };
        let file = File { current: Some("x".into()), contexts: [("x".to_string(), context)].into() };
        save(&path, &file).unwrap();
        save(&path, &file).unwrap();
        assert_eq!(load(&path).unwrap(), file);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft stays behind");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let (_dir, env) = setup("current = \"a\"\n[contexts.a]\nurl = \"https://x\"\n");
        let error = target(&Connection::default(), &env).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("url"), "{error}");
    }
}
