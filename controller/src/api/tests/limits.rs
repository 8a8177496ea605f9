//! Bounds: what is too much is refused quickly, and does not harm who comes after.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use super::*;
use crate::messages::zone::GetZone;

#[tokio::test]
async fn beyond_the_bound_requests_are_shed_and_probes_go_through() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let gateway = Gateway::start_with(
        |config| config.max_in_flight = 1,
        move |services| {
            services.serve(move |_, m: GetZone| {
                let held = Arc::clone(&held);
                async move {
                    let _permit = held.acquire().await;
                    Err::<shared::api::zone::Zone, _>(Error::not_found("zone", m.id))
                }
            });
        },
    )
    .await;
    let path = format!("/v1/zones/{}", shared::id::ZoneId::new());
    let (first, ()) = tokio::join!(gateway.get(&path).admin().send(), async {
        while gateway.server.api().in_flight.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let shed = gateway.get(&path).admin().send().await;
        assert_eq!((shed.problem().0, shed.header("retry-after")), (503, "1"));
        assert_eq!(gateway.get("/healthz").send().await.status, 200);
        gate.add_permits(1);
    });
    assert_eq!(first.problem().0, 404);
    assert_eq!(gateway.server.api().in_flight.available_permits(), 1);
}

#[tokio::test]
async fn a_running_request_ends_before_the_gateway_stops_and_nobody_new_comes_in() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let gateway = Gateway::start(move |services| {
        services.serve(move |_, m: GetZone| {
            let held = Arc::clone(&held);
            async move {
                let _permit = held.acquire().await;
                Err::<shared::api::zone::Zone, _>(Error::not_found("zone", m.id))
            }
        });
    })
    .await;
    let path = format!("/v1/zones/{}", shared::id::ZoneId::new());
    let full = gateway.server.api().in_flight.available_permits();
    let (reply, ()) = tokio::join!(gateway.get(&path).admin().send(), async {
        while gateway.server.api().in_flight.available_permits() == full {
            tokio::task::yield_now().await;
        }
        let stopping = gateway.server.shutdown();
        tokio::pin!(stopping);
        tokio::select! {
            biased;
            () = &mut stopping => panic!("the gateway stopped with a request running"),
            () = tokio::task::yield_now() => gate.add_permits(1),
        }
        stopping.await;
    });
    assert_eq!(reply.problem().0, 404);
    assert!(TcpStream::connect(gateway.server.address()).await.is_err());
}

#[tokio::test]
async fn a_head_that_is_too_large_or_broken_is_refused() {
    let gateway = Gateway::start_with(|config| config.max_header_bytes = 8192, |_| ()).await;
    let head = async |head: String| {
        let mut stream = gateway.connect(None).await;
        // The answer may come, and the connection go, before all was sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut text = vec![0; 12];
        let _ = stream.read_exact(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    };
    assert_eq!(
        head(format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(20_000))).await,
        "HTTP/1.1 431"
    );
    let many = "A: b\r\n".repeat(200);
    assert_eq!(head(format!("GET /healthz HTTP/1.1\r\n{many}\r\n")).await, "HTTP/1.1 431");
    assert_eq!(head("GET\0 / HTTP/1.1\r\n\r\n".to_string()).await, "HTTP/1.1 400");
    assert_eq!(
        head("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n".to_string()).await,
        "HTTP/1.1 400"
    );
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
}

#[tokio::test]
async fn who_says_nothing_is_let_go() {
    let gateway = Gateway::start_with(
        |config| (config.handshake_timeout_s, config.header_timeout_s, config.max_handshakes) = (1, 1, 1),
        |_| (),
    )
    .await;
    let mut silent = TcpStream::connect(gateway.server.address()).await.unwrap();
    let mut idle = gateway.connect(None).await;
    let mut byte = [0];
    // Both ends come by themselves; the long limit only ends a test that would hang.
    let limit = Duration::from_secs(60);
    assert!(matches!(tokio::time::timeout(limit, silent.read(&mut byte)).await, Ok(Ok(0) | Err(_))));
    assert!(matches!(tokio::time::timeout(limit, idle.read(&mut byte)).await, Ok(Ok(0) | Err(_))));
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
}

#[tokio::test]
async fn the_plain_listener_serves_the_same() {
    let gateway =
        Gateway::start_with(|config| config.plain_listen = Some("127.0.0.1:0".parse().unwrap()), |_| ()).await;
    let mut stream = TcpStream::connect(gateway.server.plain_address().unwrap()).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("alive\n"), "{text}");
}
