//! `kring-controller backup` and `restore`: everything that a controller with an embedded database
//! keeps, as a folder that any tool can carry away.
//!
//! A backup is a folder with `kring.db` (a consistent copy, also while the controller runs), `pki/` (the
//! certificate authority), `controller-id`, and `images/` (uploaded images). With PostgreSQL the database
//! has all but the images, and PostgreSQL's own tools copy it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::db::{self, Db, Dialect};

/// The database in a backup, as it is called in the data folder.
const DATABASE: &str = "kring.db";
/// What else is copied, when it is there.
const PARTS: [&str; 3] = ["pki", "controller-id", "images"];

/// Why there is no backup, or none was put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{path} cannot be {what}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another tool's work.
    #[error(
        "the database is PostgreSQL, which has everything but uploaded images: back it up with pg_dump and restore it with pg_restore, while no controller runs; then copy {0}/images"
    )]
    Postgres(PathBuf),
    /// The target has something in it.
    #[error("{0} is not empty: give a folder that is not there yet")]
    Taken(PathBuf),
    /// There is a cloud already.
    #[error("{0} has a database already: move the folder away first, when the backup is to take its place")]
    Occupied(PathBuf),
    /// No backup.
    #[error("{0} is no backup: it has no kring.db")]
    NoBackup(PathBuf),
    /// The database.
    #[error("the database could not be copied")]
    Database(#[from] db::Error),
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, what, source }
}

/// Makes a backup in the folder `to`, which must be empty or missing. Returns its size in bytes.
///
/// # Errors
/// See [`Error`]. What was written until then stays, without `kring.db`: it is written last.
pub async fn backup(config: &Config, to: &Path) -> Result<u64, Error> {
    only_embedded(config)?;
    private_folder(to)?;
    if fs::read_dir(to).map_err(failed(to, "read"))?.next().is_some() {
        return Err(Error::Taken(to.to_owned()));
    }
    for part in PARTS {
        copy(&config.data_dir.join(part), &to.join(part))?;
    }
    // Last, so that a folder without it is no backup; complete before it has its name.
    let unfinished = to.join("kring.db.part");
    db::backup::copy(&config.database_url(), &unfinished).await?;
    fs::File::open(&unfinished).and_then(|file| file.sync_all()).map_err(failed(&unfinished, "written"))?;
    let target = to.join(DATABASE);
    fs::rename(&unfinished, &target).map_err(failed(&target, "written"))?;
    size(to)
}

/// Puts a backup into the data folder, which must have no database. Hosts that saw a newer cloud than the
/// backup's obey it all the same. The files get the data folder's owner.
///
/// # Errors
/// See [`Error`].
pub async fn restore(config: &Config, from: &Path) -> Result<(), Error> {
    only_embedded(config)?;
    if !from.join(DATABASE).is_file() {
        return Err(Error::NoBackup(from.to_owned()));
    }
    let dir = &config.data_dir;
    if dir.join(DATABASE).exists() {
        return Err(Error::Occupied(dir.clone()));
    }
    private_folder(dir)?;
    for part in PARTS {
        copy(&from.join(part), &dir.join(part))?;
    }
    // As with a backup: a controller that is started too early finds no database, and no half one.
    let unfinished = dir.join("kring.db.part");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&unfinished, "removed")(error)),
        _ => {}
    }
    copy(&from.join(DATABASE), &unfinished)?;
    db::backup::revive(&format!("sqlite:{}", unfinished.display())).await?;
    let target = dir.join(DATABASE);
    fs::rename(&unfinished, &target).map_err(failed(&target, "written"))?;
    let owner = fs::metadata(dir).map_err(failed(dir, "read"))?;
    give(dir, owner.uid(), owner.gid())
}

fn only_embedded(config: &Config) -> Result<(), Error> {
    match Dialect::of(&config.database_url()) {
        Ok(Dialect::Sqlite) if config.database_url() == Db::sqlite_url(&config.data_dir) => Ok(()),
        Ok(Dialect::Postgres) => Err(Error::Postgres(config.data_dir.clone())),
        _ => Err(Error::NoBackup(config.data_dir.clone())),
    }
}

fn private_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path, "made"))
}

/// Copies a file or a folder with all that is in it; what is not there is not copied.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let meta = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed(from, "read"))?,
    };
    if !meta.is_dir() {
        // An image may be deleted meanwhile.
        return match fs::copy(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(()),
            other => other.map(drop).map_err(failed(to, "written")),
        };
    }
    private_folder(to)?;
    for entry in fs::read_dir(from).map_err(failed(from, "read"))? {
        let entry = entry.map_err(failed(from, "read"))?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn size(path: &Path) -> Result<u64, Error> {
    let meta = fs::symlink_metadata(path).map_err(failed(path, "read"))?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let entries = fs::read_dir(path).map_err(failed(path, "read"))?;
    entries.map(|entry| size(&entry.map_err(failed(path, "read"))?.path())).sum()
}

/// Gives everything below a folder to its owner; nothing is done where it is that already.
fn give(path: &Path, uid: u32, gid: u32) -> Result<(), Error> {
    let meta = fs::symlink_metadata(path).map_err(failed(path, "read"))?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(failed(path, "given to its owner"))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(failed(path, "read"))? {
            give(&entry.map_err(failed(path, "read"))?.path(), uid, gid)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{App, Foundation};
    use crate::config::Source;

    fn config(dir: &Path) -> Config {
        let set = |text: String| Source::Set(text);
        Config::from_sources(&[set(format!("data_dir={}", dir.display())), set("api.listen=127.0.0.1:0".to_string())])
            .unwrap()
    }

    /// The ids and names of all zones, the generation of the ring, and the authority.
    async fn look(app: &App, config: &Config) -> (Vec<String>, u64, String) {
        let deps = &app.context().deps;
        let mut conn = deps.db.read().await.unwrap();
        let zones = db::query("SELECT id || name AS zone FROM zone").fetch_all(&mut conn).await.unwrap();
        let zones: Vec<_> = zones.iter().map(|row| row.text("zone").unwrap()).collect();
        let authority = fs::read_to_string(config.pki_dir().join("ca.pem")).unwrap();
        let generation = db::query("SELECT value FROM counter WHERE name = 'generation'");
        let generation = generation.fetch_one(&mut conn).await.unwrap().int("value").unwrap();
        (zones, u64::try_from(generation).unwrap(), authority)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_put_back_is_what_was_there_under_a_newer_generation() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (config(&folder.path().join("first")), config(&folder.path().join("second")));
        let copy = folder.path().join("backup");

        let app = App::start(Foundation::open(first.clone()).await.unwrap()).await.unwrap();
        fs::create_dir_all(first.image_dir()).unwrap();
        fs::write(first.image_dir().join("image"), "content").unwrap();
        let (zones, generation, authority) = look(&app, &first).await;
        assert_eq!(zones.len(), 1);
        assert!(backup(&first, &copy).await.unwrap() > 10_000, "made while the controller runs");
        assert!(matches!(backup(&first, &copy).await, Err(Error::Taken(_))));
        assert!(matches!(restore(&first, &copy).await, Err(Error::Occupied(_))));
        app.shutdown().await;

        assert!(matches!(restore(&second, folder.path()).await, Err(Error::NoBackup(_))));
        restore(&second, &copy).await.unwrap();
        let app = App::start(Foundation::open(second.clone()).await.unwrap()).await.unwrap();
        let (zones_after, generation_after, authority_after) = look(&app, &second).await;
        assert_eq!((zones_after, authority_after), (zones, authority));
        assert!(generation_after > generation + 999_999, "{generation_after} must be newer than anything since");
        assert_eq!(fs::read_to_string(second.image_dir().join("image")).unwrap(), "content");
        let id = |config: &Config| fs::read_to_string(config.data_dir.join("controller-id")).unwrap();
        assert_eq!(id(&first), id(&second));
        app.shutdown().await;
    }

    #[tokio::test]
    async fn a_damaged_copy_is_not_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let (copy, target) = (folder.path().join("backup"), config(&folder.path().join("new")));
        fs::create_dir(&copy).unwrap();
        fs::write(copy.join(DATABASE), "no database").unwrap();
        assert!(matches!(restore(&target, &copy).await, Err(Error::Database(_))));
        assert!(!target.data_dir.join(DATABASE).exists());
    }

    #[tokio::test]
    async fn postgresql_has_tools_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::from_sources(&[
            Source::Set(format!("data_dir={}", folder.path().display())),
            Source::Set("database.url=postgres://kring@db/kring".to_string()),
        ])
        .unwrap();
        let error = backup(&config, &folder.path().join("b")).await.unwrap_err();
        assert!(error.to_string().contains("pg_dump"), "{error}");
    }
}
