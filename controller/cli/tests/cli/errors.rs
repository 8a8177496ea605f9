//! Errors: the exit code, the words, and what to do next.

use shared::Code;

use super::cmd::{finish, kring};
use super::fake::{Answer, Fake, id};

#[tokio::test]
async fn each_kind_of_error_has_its_exit_code() {
    for (code, exit) in [
        (Code::InvalidRequest, 2),
        (Code::NotFound, 3),
        (Code::InvalidState, 4),
        (Code::NameTaken, 4),
        (Code::InUse, 4),
        (Code::Unauthenticated, 5),
        (Code::Forbidden, 5),
        (Code::DeadlineExceeded, 6),
        (Code::NoHostFits, 1),
        (Code::Internal, 1),
    ] {
        let fake = Fake::start(move |_, _| Answer::problem(code, "no")).await;
        let run = fake.run(&["vm", "stop", &id(1)]).await.ended(exit);
        assert!(run.stderr.starts_with("error: no\n"), "{code}: {}", run.stderr);
        assert!(run.stderr.contains("request: req-42"), "{code}: {}", run.stderr);
        assert_eq!(fake.asked().len(), 1, "{code} is not tried again");
    }
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_told_plainly() {
    let home = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = kring(home.path());
    command.env("KRING_URL", format!("http://{free}")).args(["vm", "list"]);
    let run = finish(command).await.ended(5);
    assert!(run.stderr.starts_with(&format!("error: cannot reach the controller at http://{free}/")), "{}", run.stderr);
    assert!(run.stderr.contains("Connection refused"), "{}", run.stderr);
    assert!(run.stderr.contains("hint:"), "{}", run.stderr);
}

#[tokio::test]
async fn something_that_is_not_a_controller_is_told_apart() {
    let fake = Fake::start(|_, _| Answer::Text(200, "<html>hello</html>".into())).await;
    let run = fake.run(&["vm", "list"]).await.ended(5);
    assert!(run.stderr.contains("answered without JSON"), "{}", run.stderr);
    let fake = Fake::start(|_, _| Answer::Text(418, "teapot \u{1b}[2J".into())).await;
    let run = fake.run(&["vm", "list"]).await.ended(1);
    assert!(run.stderr.contains("418") && run.stderr.contains("teapot"), "{}", run.stderr);
    assert!(!run.stderr.contains('\u{1b}'), "{}", run.stderr);
}

#[tokio::test]
async fn without_a_configuration_the_way_in_is_told() {
    let home = tempfile::tempdir().unwrap();
    let mut command = kring(home.path());
    command.args(["vm", "list"]);
    let run = finish(command).await.ended(5);
    assert!(run.stderr.contains("no controller is configured") && run.stderr.contains("kring login"), "{}", run.stderr);
}

#[tokio::test]
async fn missing_arguments_are_usage_errors() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &["vm", "create", "web", "--image", "debian"][..],
        &["vm", "create", "../web", "--image", "debian", "--vcpus", "1", "--memory", "1GiB"],
        &["vm", "create", "web", "--image", "d", "--vcpus", "1", "--memory", "1 parsec"],
        &["vm", "start"],
        &["vm", "update", "web"],
        &["image", "create", "debian"],
        &["image", "create", "debian", "--url", "http://x", "--file", "y"],
        &["network", "create", "lan", "--cidr", "10.77.0.0"],
    ] {
        let mut command = kring(home.path());
        command.env("KRING_URL", "http://127.0.0.1:9").args(args);
        finish(command).await.ended(2);
    }
}

#[tokio::test]
async fn ctrl_c_ends_a_read_that_hangs() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut command = kring(home.path());
    command.env("KRING_URL", format!("http://{}", listener.local_addr().unwrap())).args(["vm", "list"]);
    let child = command.spawn().unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    // Once its request is here, the program does nothing but wait.
    tokio::io::AsyncReadExt::read_u8(&mut connection).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}
