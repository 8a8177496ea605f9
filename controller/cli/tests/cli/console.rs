//! Consoles: the ticket, the WebSocket, the log and the local VNC port.

use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::cmd::finish_with_input;
use super::fake::{Answer, Fake, ago, id};

async fn consoles() -> Fake {
    Fake::start(|asked, _| match asked.path.as_str() {
        "/v1/consoles/ticket-1" => Answer::Socket("login: ".into()),
        path if path.ends_with("/console/log") => match asked.param("offset") {
            "" => Answer::Json(200, json!({"text": "booting\nready\n", "offset": 100, "next_offset": 114})),
            offset => {
                Answer::Json(200, json!({"text": "", "offset": 114, "next_offset": offset.parse::<u64>().unwrap()}))
            }
        },
        path if path.ends_with("/console") => Answer::Json(
            200,
            json!({"kind": asked.json()["kind"], "path": "/v1/consoles/ticket-1", "expires_at": ago(-30)}),
        ),
        path => panic!("{path}"),
    })
    .await
}

#[tokio::test]
async fn the_serial_console_carries_both_ways() {
    let fake = consoles().await;
    let run = finish_with_input(fake.command(&["vm", "console", &id(1)]), b"root\n").await.ended(0);
    assert_eq!(run.stdout, "login: ROOT\n");
    let asked = fake.asked();
    assert_eq!(asked[0].json(), json!({"kind": "serial"}));
    assert_eq!(asked[1].header("authorization"), "", "the ticket is enough");
}

#[tokio::test]
async fn the_log_is_written_as_it_is() {
    let fake = consoles().await;
    assert_eq!(fake.run(&["vm", "log", &id(1)]).await.ended(0).stdout, "booting\nready\n");
    assert_eq!(fake.run(&["vm", "log", &id(1), "-o", "json"]).await.ended(0).json()["next_offset"], 114);
}

#[tokio::test]
async fn a_followed_log_goes_on_where_it_was() {
    let fake = consoles().await;
    let mut child = fake.command(&["vm", "log", &id(1), "-f"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "booting");
    while fake.asked().len() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.asked()[2].param("offset"), "114");
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}

#[tokio::test]
async fn a_viewer_gets_the_screen_through_a_local_port() {
    let fake = consoles().await;
    let mut command = fake.command(&["vm", "vnc", &id(1), "--listen", "127.0.0.1:0", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains('}') {
        stdout.read_line(&mut text).await.unwrap();
    }
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut viewer = tokio::net::TcpStream::connect(said["listen"].as_str().unwrap()).await.unwrap();
    let mut greeting = [0_u8; 7];
    viewer.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"login: ");
    viewer.write_all(b"hello").await.unwrap();
    let mut rest = Vec::new();
    viewer.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"HELLO");
    assert_eq!(fake.asked()[0].json(), json!({"kind": "vnc"}));
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}

#[tokio::test]
async fn a_console_on_another_server_is_refused() {
    let fake = Fake::start(|_, _| {
        Answer::Json(200, json!({"kind": "serial", "path": "https://evil.example/x", "expires_at": ago(-30)}))
    })
    .await;
    let run = fake.run(&["vm", "console", &id(1)]).await.ended(5);
    assert!(run.stderr.contains("is not on this server"), "{}", run.stderr);
}
