//! Configuration: the manual says what the defaults say, sources win in order, errors name the place.

use super::*;

fn file(text: &str) -> Source {
    Source::File { path: "/etc/kring/controller.toml".into(), text: text.into() }
}

fn set(text: &str) -> Source {
    Source::Set(text.into())
}

fn error(sources: &[Source]) -> String {
    Config::from_sources(sources).unwrap_err().to_string()
}

#[test]
fn the_manual_says_what_the_defaults_say_and_names_every_key() {
    assert_eq!(Config::from_sources(&[file(DEFAULT_TOML)]).unwrap(), Config::default());
    let debug = format!("{:#?}", Config::default());
    for line in debug.lines().filter(|line| line.starts_with("    ")) {
        let key = line.trim().split(':').next().unwrap_or_default();
        if !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            assert!(
                DEFAULT_TOML.contains(&format!("\n{key} = ")) || DEFAULT_TOML.contains(&format!("\n[{key}]")),
                "{key}"
            );
        }
    }
}

#[test]
fn the_later_source_wins_and_leaves_the_rest() {
    let env = load::from_env(
        [("KRING_API_MAX_STREAMS", "7"), ("KRING_DATA_DIR", "/srv/kring"), ("KRING_TOKEN", "x"), ("PATH", "/bin")]
            .into_iter()
            .map(|(k, v)| (k.into(), v.into())),
    );
    let mut sources = vec![file("[api]\nmax_streams = 5\nmax_in_flight = 6\n[log]\nfilter = \"debug\"\n")];
    sources.extend(env);
    sources.extend([set("api.listen=127.0.0.1:1"), set("log.format=json"), set("api.names=[\"a.b\", \"10.0.0.1\"]")]);
    sources.push(set("database.url=sqlite:/tmp/x.db"));
    let config = Config::from_sources(&sources).unwrap();
    assert_eq!((config.api.max_streams, config.api.max_in_flight), (7, 6));
    assert_eq!(config.data_dir, Path::new("/srv/kring"));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("debug", LogFormat::Json));
    assert_eq!((config.api.listen.port(), config.api.names.len()), (1, 2));
    assert_eq!(config.database_url(), "sqlite:/tmp/x.db");
}

#[test]
fn a_value_of_text_may_look_like_a_number() {
    assert_eq!(Config::from_sources(&[set("log.filter=5")]).unwrap().log.filter, "5");
    assert_eq!(Config::from_sources(&[set("api.max_body=4096")]).unwrap().api.max_body.0, 4096);
}

#[test]
fn an_error_names_the_place_the_key_and_what_to_give() {
    let all = [
        error(&[file("[api]\nlisen = \"1.2.3.4:1\"\n")]),
        error(&[file("data_dir = \"relative\"\n")]),
        error(&[file("[api]\nplain_listen = \"0.0.0.0:80\"\n")]),
        error(&[file("[api]\nmax_streams = 0\n")]),
        error(&[file("[api]\nmax_body = \"lots\"\n")]),
        error(&[file("[api]\nnames = [\"a b\"]\n")]),
        error(&[file("[database]\nurl = \"mysql://root:secret@x\"\n")]),
        error(&[file("[log]\nformat = \"xml\"\n")]),
        error(&[set("bus.url=rabbit://guest:secret@host")]),
        error(&[file("[bus]\nca_file = \"ca.pem\"\n")]),
        error(&[set("bus.prefetch=0")]),
        error(&[set("bus.url=amqp://guest:secret@host")]),
        error(&[set("bus.credentials_file=/etc/kring/broker")]),
        error(&[file("[services]\ndisabled = [\"image\", \"imag\"]\n")]),
        error(&[set("services.disabled=[\"job\"]")]),
        error(&[set("services.disabled=image")]),
        error(&[file("[hosts\n")]),
        error(&[set("api.listen=nowhere")]),
        error(&[set("api.max_streams=many")]),
        error(&[set("nothing=1")]),
        error(&[set("api.listen")]),
        error(&[Source::Env { name: "KRING_DATA_DIR".into(), key: "data_dir".into(), value: "x".into() }]),
    ];
    let text = all.join("\n\n");
    insta::assert_snapshot!(text);
    // A password in a URL is not repeated, except in the line of the file that is shown.
    assert!(
        !format!(
            "{:?}",
            Config {
                database: DatabaseConfig { url: "postgres://a:secret@b/c".into(), ..DatabaseConfig::default() },
                ..Config::default()
            }
        )
        .contains("secret")
    );
    let url = "amqp://a:secret@b".to_string();
    assert!(!format!("{:?}", BusConfig { url, ..BusConfig::default() }).contains("secret"));
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_named() {
    let error = Config::load(Some(Path::new("/nonexistent/kring.toml")), &[]).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kring.toml"));
}

#[test]
fn the_password_of_the_database_may_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let load = |url: &str| {
        let set = [format!("database.url={url}"), format!("database.credentials_file={}", file.display())];
        Config::load(Some(Path::new("/dev/null")), &set).map(|config| config.database.url)
    };
    assert!(load("postgres://db/kring").unwrap_err().to_string().contains("credentials_file"), "there is no file");
    std::fs::write(&file, "kring:p@ss:w/rd\n").unwrap();
    assert_eq!(
        load("postgres://db/kring?sslmode=require").unwrap(),
        "postgres://kring:p%40ss%3Aw%2Frd@db/kring?sslmode=require"
    );
    assert_eq!(load("postgres://old:one@db:5433/kring").unwrap(), "postgres://kring:p%40ss%3Aw%2Frd@db:5433/kring");
    std::fs::write(&file, "no colon").unwrap();
    assert!(load("postgres://db/kring").unwrap_err().to_string().contains("user:password"));
}
