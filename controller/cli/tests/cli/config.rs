//! Logging in, contexts, and where the address and the token come from.

use std::os::unix::fs::PermissionsExt as _;

use super::cmd::{finish, finish_with_input, kring};
use super::fake::{Answer, Fake};

async fn empty() -> Fake {
    Fake::start(|asked, _| match asked.header("authorization") {
        "Bearer good" => Answer::page(Vec::new()),
        _ => Answer::problem(shared::Code::Unauthenticated, "the token is not known"),
    })
    .await
}

#[tokio::test]
async fn a_login_is_checked_saved_privately_and_used() {
    let fake = empty().await;
    let mut command = kring(fake.home.path());
    command.args(["login", "--url", &fake.url, "--token-stdin", "--name", "demo"]);
    let run = finish_with_input(command, b"good\n").await.ended(0);
    assert!(run.stdout.starts_with("Logged in to "), "{}", run.stdout);
    let path = fake.home.path().join("config.toml");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap().replace(&fake.url, "http://controller"), @r#"
    current = "demo"

    [contexts.demo]
    urls = ["http://controller"]
    token = "good"
    "#);
    let mut command = kring(fake.home.path());
    command.args(["vm", "list"]);
    finish(command).await.ended(0);
}

#[tokio::test]
async fn a_wrong_token_is_not_saved() {
    let fake = empty().await;
    let mut command = kring(fake.home.path());
    command.args(["login", "--url", &fake.url, "--token", "bad"]);
    finish(command).await.ended(5);
    assert!(!fake.home.path().join("config.toml").exists());
}

#[tokio::test]
async fn contexts_are_listed_without_tokens_chosen_and_forgotten() {
    let fake = empty().await;
    for name in ["one", "two"] {
        let mut command = kring(fake.home.path());
        command.args(["login", "--url", &fake.url, "--token", "good", "--name", name]);
        finish(command).await.ended(0);
    }
    let run = |args: &'static [&'static str]| {
        let mut command = kring(fake.home.path());
        command.args(args);
        finish(command)
    };
    let list = run(&["context", "list", "-o", "json"]).await.ended(0);
    assert!(!list.stdout.contains("good"), "{}", list.stdout);
    assert_eq!(list.json()[1]["current"], true);
    run(&["context", "use", "one"]).await.ended(0);
    assert_eq!(run(&["context", "list", "-o", "json"]).await.json()[0]["current"], true);
    run(&["--context", "three", "vm", "list"]).await.ended(2);
    run(&["context", "remove", "one"]).await.ended(0);
    assert_eq!(run(&["context", "list", "-o", "name"]).await.stdout, "two\n");
    run(&["context", "remove", "one"]).await.ended(3);
}

#[tokio::test]
async fn a_file_that_is_not_valid_is_named_with_its_line() {
    let fake = empty().await;
    let path = fake.home.path().join("config.toml");
    std::fs::write(&path, "current = \"x\"\nnonsense\n").unwrap();
    let mut command = kring(fake.home.path());
    command.args(["vm", "list"]);
    let run = finish(command).await.ended(2);
    assert!(run.stderr.contains("config.toml") && run.stderr.contains("line 2"), "{}", run.stderr);
}

#[tokio::test]
async fn a_readable_token_is_warned_about() {
    let fake = empty().await;
    let path = fake.home.path().join("config.toml");
    let text = format!("current = \"x\"\n[contexts.x]\nurls = [\"{}\"]\ntoken = \"good\"\n", fake.url);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = kring(fake.home.path());
    command.args(["vm", "list"]);
    let run = finish(command).await.ended(0);
    assert!(run.stderr.contains("chmod 600"), "{}", run.stderr);
}

#[tokio::test]
async fn a_token_never_leaves_in_the_clear() {
    let fake = empty().await;
    let mut command = kring(fake.home.path());
    command.env("KRING_URL", "http://192.0.2.1:8443").env("KRING_TOKEN", "good").args(["vm", "list"]);
    let run = finish(command).await.ended(2);
    assert!(run.stderr.contains("without TLS"), "{}", run.stderr);
}
