//! The bus over a real RabbitMQ: every way to send between controllers, and what is seen of it when a
//! controller, a queue or the broker itself goes away, is full, frozen or not the right one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use controller::bus::rabbit::Settings;
use controller::bus::{Event, Message, Registry, Request, Transport as _};
use controller::cx::Cx;
use harness::broker::{Broker, Node};
use harness::wait::{eventually, until};
use lapin::options::{BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde::{Deserialize, Serialize};
use shared::error::Code;
use shared::id::ControllerId;
use tokio::sync::mpsc;
use uuid::Uuid;

#[derive(Clone, Serialize, Deserialize)]
struct Add {
    a: u32,
    b: u32,
    about: Option<Uuid>,
}

impl Message for Add {
    const NAME: &'static str = "math.Add";
}

impl Request for Add {
    type Reply = u32;
    const SERVICE: &'static str = "math";
    fn resource(&self) -> Option<Uuid> {
        self.about
    }
}

/// Never answered; its handler says when it begins and when it is told that nobody waits.
#[derive(Clone, Serialize, Deserialize)]
struct Hang;

impl Message for Hang {
    const NAME: &'static str = "math.Hang";
}

impl Request for Hang {
    type Reply = ();
    const SERVICE: &'static str = "math";
}

/// Served by nobody.
#[derive(Clone, Serialize, Deserialize)]
struct Stranger;

impl Message for Stranger {
    const NAME: &'static str = "math.Stranger";
}

impl Request for Stranger {
    type Reply = ();
    const SERVICE: &'static str = "math";
}

#[derive(Clone, Serialize, Deserialize)]
struct Changed {
    n: u32,
}

impl Message for Changed {
    const NAME: &'static str = "math.Changed";
}

impl Event for Changed {}

/// What a node's handlers and subscribers see.
#[derive(Debug, PartialEq)]
enum Seen {
    Added(u32),
    Begun,
    Cancelled,
    Event(u32),
}

type Sight = mpsc::UnboundedReceiver<Seen>;

fn math(registry: &mut Registry, seen: &mpsc::UnboundedSender<Seen>) {
    let tell = seen.clone();
    registry.serve(move |_, m: Add| {
        let sum = m.a.checked_add(m.b).ok_or_else(|| shared::Error::invalid("b", "the sum is too large"));
        // A test that looks no more is no failure.
        let _ = tell.send(Seen::Added(m.a));
        async move { sum }
    });
    let tell = seen.clone();
    registry.serve(move |cx: Cx, _: Hang| {
        let tell = tell.clone();
        async move {
            let _ = tell.send(Seen::Begun);
            cx.cancelled.cancelled().await;
            let _ = tell.send(Seen::Cancelled);
            std::future::pending().await
        }
    });
    let tell = seen.clone();
    registry.subscribe(move |event: Changed| {
        let _ = tell.send(Seen::Event(event.n));
        async {}
    });
}

fn node(settings: Settings) -> (Node, Sight) {
    let (tell, seen) = mpsc::unbounded_channel();
    // As many services as a controller has, so that there are as many queues.
    let register = |registry: &mut Registry| {
        math(registry, &tell);
        more_services(registry);
    };
    (Node::start(settings, register), seen)
}

macro_rules! services {
    ($($name:ident)*) => {
        /// A message to each service, which is called as the service is.
        mod of {$(
            pub mod $name {
                #[derive(Clone, serde::Serialize, serde::Deserialize)]
                pub struct Nothing;
                impl ::controller::bus::Message for Nothing {
                    const NAME: &'static str = concat!(stringify!($name), ".Nothing");
                }
                impl ::controller::bus::Request for Nothing {
                    type Reply = ();
                    const SERVICE: &'static str = stringify!($name);
                }
            }
        )*}
        const SERVICES: &[&str] = &[$(stringify!($name)),*];
        fn more_services(registry: &mut Registry) {
            $(registry.serve(|_, _: of::$name::Nothing| async { Ok(()) });)*
        }
    };
}

services!(account cluster controller event host image instance_type job network setting storage vm volume zone);

fn cx(seconds: u64) -> Cx {
    Cx::system(Duration::from_secs(seconds))
}

fn add(a: u32) -> Add {
    Add { a, b: 1, about: None }
}

/// Puts all nodes into one ring.
fn join(nodes: &[&Node], generation: u64) {
    let members: Vec<ControllerId> = nodes.iter().map(|node| node.id).collect();
    nodes.iter().for_each(|node| node.ring.install(generation, &members));
}

/// What comes next of what is not an addition.
async fn next(seen: &mut Sight) -> Option<Seen> {
    let wait = async {
        loop {
            match seen.recv().await {
                Some(Seen::Added(_)) => {}
                other => return other,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_send_works_between_controllers_and_queues_do_not_grow() -> anyhow::Result<()> {
    assert_eq!(SERVICES, controller::services::ALL.iter().map(|service| service.name).collect::<Vec<_>>());
    let broker = Broker::start().await?;
    let ((one, mut seen_one), (two, mut seen_two)) = (node(broker.settings()), node(broker.settings()));
    one.connected().await?;
    two.connected().await?;
    join(&[&one, &two], 2);
    let queues = broker.queues().await?;
    assert_eq!(queues.len(), 2 * (SERVICES.len() + 3), "{queues:?}");
    assert!(queues.len() < 60);

    // A request goes to the owner of what it is about, wherever it is asked.
    let about = std::iter::repeat_with(Uuid::now_v7).find(|id| one.ring.owner(*id) == Ok(two.id));
    assert_eq!(one.bus.call(&cx(60), Add { a: 1, b: 2, about }).await?, 3);
    assert_eq!(seen_two.recv().await, Some(Seen::Added(1)));
    let error = one.bus.call_at(two.id, &cx(60), Add { a: u32::MAX, ..add(1) }).await.unwrap_err();
    assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidRequest, "b"));
    assert_eq!(one.bus.call_at(two.id, &cx(60), Stranger).await.unwrap_err().code, Code::UnknownMessage);

    // Many at a time, both ways; the replies are those of the requests.
    let some = |from: u32| (from..from + 400).map(|a| Add { a, b: 1, about: Some(Uuid::now_v7()) }).collect::<Vec<_>>();
    let (to_two, to_one) = (one.bus.clone(), two.bus.clone());
    let (there, back) = (cx(60), cx(60));
    let (there, back) = tokio::join!(to_two.call_all(&there, 64, some(0)), to_one.call_all(&back, 64, some(1000)));
    for (replies, from) in [(there, 0), (back, 1000)] {
        let sums: Vec<u32> = replies.into_iter().collect::<Result<_, _>>()?;
        assert_eq!(sums, (from + 1..from + 401).collect::<Vec<_>>());
    }

    // Events reach everybody else once and in order; the publisher has its own without the broker.
    for n in 0..20 {
        one.bus.publish(&cx(60), &Changed { n });
        assert_eq!(next(&mut seen_one).await, Some(Seen::Event(n)));
        assert_eq!(next(&mut seen_two).await, Some(Seen::Event(n)));
    }

    // Also when they are published faster than the broker confirms them.
    (100..400).for_each(|n| one.bus.publish(&cx(60), &Changed { n }));
    for seen in [&mut seen_one, &mut seen_two] {
        for n in 100..400 {
            assert_eq!(next(seen).await, Some(Seen::Event(n)));
        }
    }

    // Who stops waiting has the handler told, there.
    {
        let cx = cx(60);
        let call = one.bus.call_at(two.id, &cx, Hang);
        tokio::pin!(call);
        tokio::select! {
            _ = &mut call => panic!("it ended by itself"),
            begun = next(&mut seen_two) => assert_eq!(begun, Some(Seen::Begun)),
        }
    }
    assert_eq!(next(&mut seen_two).await, Some(Seen::Cancelled));
    assert_eq!(one.bus.call_at(two.id, &cx(1), Hang).await.unwrap_err().code, Code::DeadlineExceeded);
    assert_eq!(next(&mut seen_two).await, Some(Seen::Begun));

    assert_eq!(broker.queues().await?, queues, "calls have made or removed queues");
    // Nothing else has come.
    assert!(seen_one.try_recv().is_err() || seen_one.is_empty());
    // Who leaves has told everybody what it published.
    (400..700).for_each(|n| one.bus.publish(&cx(60), &Changed { n }));
    one.leave().await;
    for n in 400..700 {
        assert_eq!(next(&mut seen_two).await, Some(Seen::Event(n)));
    }
    two.leave().await;
    assert_eq!(broker.queues().await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_is_known_at_once_and_what_is_left_of_him_goes() -> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let ((one, mut seen_one), (two, mut seen_two)) = (node(broker.settings()), node(broker.settings()));
    let (three, _seen_three) = node(broker.settings());
    for node in [&one, &two, &three] {
        node.connected().await?;
    }
    join(&[&one, &two, &three], 2);
    // Who left in order has no queues, who never was neither. The calls have hours, the test has not.
    three.leave().await;
    for gone in [three.id, ControllerId::new()] {
        let error = one.bus.call_at(gone, &cx(7200), add(1)).await.unwrap_err();
        assert_eq!(error.code, Code::OwnerLeft, "{error:?}");
        assert!(error.message.contains(&gone.to_string()));
    }
    // Among many to somebody who is there, a message that comes back is its sender's alone.
    let (here, gone) = (cx(60), cx(60));
    let calls = futures_util::future::join_all((0..300).map(|n| {
        let target = if n % 7 == 0 { three.id } else { two.id };
        one.bus.call_at(target, if n % 7 == 0 { &gone } else { &here }, add(n))
    }));
    for (n, reply) in calls.await.into_iter().enumerate() {
        match (n % 7, reply) {
            (0, Err(error)) => assert_eq!(error.code, Code::OwnerLeft),
            (_, reply) => assert_eq!(reply?, u32::try_from(n)? + 1),
        }
    }

    // Of one that crashed, queues are left without a reader: messages there end with their time, and the
    // queues with whoever knows that it left.
    let connection = Connection::connect(&broker.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let ghost = ControllerId::new();
    let queue = format!("kring.message.math.{ghost}");
    let name = || queue.as_str().into();
    channel.queue_declare(name(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    channel.queue_bind(name(), "kring.p2p".into(), name(), QueueBindOptions::default(), FieldTable::default()).await?;
    one.ring.install(3, &[one.id, two.id, ghost]);
    assert_eq!(one.bus.call_at(ghost, &cx(1), add(1)).await.unwrap_err().code, Code::DeadlineExceeded);
    until("the message has expired", async || {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared = channel.queue_declare(name(), passive, FieldTable::default()).await;
        declared.is_ok_and(|queue| queue.message_count() == 0)
    })
    .await?;
    one.transport.forget(ghost).await;
    assert!(!broker.queues().await?.contains(&queue));
    assert_eq!(one.bus.call_at(ghost, &cx(7200), add(1)).await.unwrap_err().code, Code::OwnerLeft);
    // Who is said to have left and has not keeps his queues.
    let (before, reconnects) = (broker.queues().await?, one.transport.health().reconnects);
    one.transport.forget(two.id).await;
    assert_eq!(broker.queues().await?, before);
    assert_eq!(one.bus.call_at(two.id, &cx(60), add(1)).await?, 2);
    assert_eq!(one.transport.health().reconnects, reconnects, "a refusal of the broker has broken the connection off");

    // What is no message is dropped, and what comes after it is not.
    let mine = BasicProperties::default().with_delivery_mode(1);
    for queue in [format!("kring.message.math.{}", two.id), format!("kring.reply.{}", two.id)] {
        let plain = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.into(), plain, b"{\"no\": \"envelope\"}", mine.clone()).await?.await?;
    }
    assert_eq!(one.bus.call_at(two.id, &cx(60), add(2)).await?, 3);
    assert_eq!(two.bus.call_at(one.id, &cx(60), add(3)).await?, 4);

    // A queue that somebody removes is made again, and everybody can see that events may be missed.
    let reconnects = two.transport.health().reconnects;
    broker.ctl(&["delete_queue", &format!("kring.message.math.{}", two.id)]).await?;
    until("the queue is back", async || two.transport.health().reconnects > reconnects).await?;
    assert_eq!(one.bus.call_at(two.id, &cx(60), add(4)).await?, 5);
    one.bus.publish(&cx(60), &Changed { n: 9 });
    assert_eq!(next(&mut seen_two).await, Some(Seen::Event(9)));
    assert_eq!(next(&mut seen_one).await, Some(Seen::Event(9)));
    one.leave().await;
    two.leave().await;
    Ok(())
}

/// Calls from one node to the other all the time until told to stop; how many were answered.
async fn load(
    from: Arc<controller::bus::Bus>,
    to: ControllerId,
    stop: tokio_util::sync::CancellationToken,
) -> anyhow::Result<u32> {
    let mut answered = 0;
    for n in 0_u32.. {
        if stop.is_cancelled() {
            break;
        }
        let cx = cx(2);
        let call = tokio::time::timeout(Duration::from_secs(60), from.call_at(to, &cx, add(n)));
        match call.await.context("a call goes on beyond its deadline")? {
            Ok(sum) => {
                assert_eq!(sum, n + 1);
                answered += 1;
            }
            Err(error) => {
                assert!(
                    [Code::Unavailable, Code::DeadlineExceeded, Code::OwnerLeft].contains(&error.code),
                    "{error:?}"
                );
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_crashes_or_starves_costs_no_more_than_the_time_it_is_away() -> anyhow::Result<()> {
    let broker = Broker::start().await?;
    let ((one, mut seen_one), (two, mut seen_two)) = (node(broker.settings()), node(broker.settings()));
    one.connected().await?;
    two.connected().await?;
    join(&[&one, &two], 2);
    let stop = tokio_util::sync::CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    let loads: Vec<_> = (0..8).map(|_| tasks.spawn(load(one.bus.clone(), two.id, stop.clone()))).collect();
    assert_eq!(one.bus.call_at(two.id, &cx(60), add(1)).await?, 2);

    broker.kill().await?;
    until("it is noticed", async || !one.transport.health().connected && !two.transport.health().connected).await?;
    // What is owned here goes on; what is not waits its time and says why.
    assert_eq!(one.bus.call_at(one.id, &cx(60), add(5)).await?, 6);
    let error = one.bus.call_at(two.id, &cx(1), add(1)).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
    assert!(error.message.contains("the message broker cannot be reached: 127.0.0.1:"), "{error:?}");
    let error = one.transport.broadcast(b"x".to_vec()).await.err().context("it was taken")?;
    assert_eq!(error.code, Code::Unavailable);
    // A controller starts without it, and a call that has the time is answered when it is back.
    let (three, _seen_three) = node(broker.settings());
    join(&[&one, &two, &three], 3);
    let patient_cx = cx(120);
    let (patient, restarted) = tokio::join!(three.bus.call_at(two.id, &patient_cx, add(7)), async {
        let restarted = broker.restart().await;
        two.connected().await?;
        restarted
    });
    restarted?;
    // It may have gone out before the other one's queues were there again.
    if let Err(error) = patient {
        assert_eq!(error.code, Code::OwnerLeft);
    }
    eventually("calls are answered again", async || {
        let (there, back) = (cx(5), cx(5));
        anyhow::ensure!(three.bus.call_at(two.id, &there, add(8)).await? == 9);
        anyhow::ensure!(two.bus.call_at(one.id, &back, add(9)).await? == 10);
        Ok(())
    })
    .await?;
    assert!(one.transport.health().reconnects > 0 && two.transport.health().reconnects > 0);
    assert_eq!(three.transport.health().reconnects, 0);
    one.bus.publish(&cx(60), &Changed { n: 1 });
    assert_eq!(next(&mut seen_one).await, Some(Seen::Event(1)));
    assert_eq!(next(&mut seen_two).await, Some(Seen::Event(1)));

    // Short of memory it takes nothing: senders wait their time, and it is seen.
    broker.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await?;
    let error = eventually("the broker takes nothing", async || {
        one.bus
            .call_at(two.id, &cx(2), add(1))
            .await
            .err()
            .filter(|e| e.message.contains("takes no messages"))
            .ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await?;
    assert_eq!(error.code, Code::Unavailable);
    assert!(one.transport.health().blocked && one.transport.health().connected);
    broker.ctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    until("it takes messages again", async || !one.transport.health().blocked).await?;
    eventually("calls are answered again", async || {
        let cx = cx(5);
        anyhow::ensure!(one.bus.call_at(two.id, &cx, add(8)).await? == 9);
        Ok(())
    })
    .await?;

    // Frozen it is as if away, and it is not waited for longer than a call has time.
    broker.freeze().await?;
    let frozen = one.bus.call_at(two.id, &cx(1), add(1)).await.unwrap_err();
    assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&frozen.code), "{frozen:?}");
    broker.thaw().await?;
    eventually("calls are answered again", async || {
        let cx = cx(5);
        anyhow::ensure!(one.bus.call_at(two.id, &cx, add(8)).await? == 9);
        Ok(())
    })
    .await?;
    stop.cancel();
    for load in loads {
        assert!(load.await?? > 0);
    }
    for node in [&one, &two, &three] {
        node.leave().await;
    }
    Ok(())
}

/// Waits until a node knows why it cannot connect.
async fn why_not(settings: Settings) -> anyhow::Result<String> {
    let (node, _seen) = node(settings);
    let error = eventually("it knows why", async || {
        let health = node.transport.health();
        let error = health.error.filter(|error| !error.contains("not reached yet"));
        anyhow::ensure!(!health.connected, "it is connected");
        error.ok_or_else(|| anyhow::anyhow!("not yet"))
    })
    .await?;
    node.leave().await;
    Ok(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_must_be_the_right_one_and_know_the_password() -> anyhow::Result<()> {
    let broker = Broker::start_with_tls().await?;
    let url = broker.tls_url.clone().unwrap_or_default();
    let credentials = broker.ca_file().with_file_name("credentials");
    std::fs::write(&credentials, "guest:guest\n")?;
    let secure = Settings { url: url.clone(), ca_file: Some(broker.ca_file()), ..broker.settings() };
    // The file wins over what the URL says.
    let by_file = Settings {
        url: url.replace("guest:guest", "nobody:nothing"),
        credentials_file: Some(credentials.clone()),
        ..secure.clone()
    };
    let ((one, _seen_one), (two, _seen_two)) = (node(secure.clone()), node(by_file));
    one.connected().await?;
    two.connected().await?;
    join(&[&one, &two], 1);
    assert_eq!(one.bus.call_at(two.id, &cx(60), add(1)).await?, 2);
    let lines = broker.ctl(&["list_connections", "--no-table-headers", "client_properties", "ssl"]).await?;
    for node in [&one, &two] {
        assert!(lines.contains(&format!("kring {} sends", node.id)), "{lines}");
    }
    assert!(!lines.contains("false"), "{lines}");
    one.leave().await;
    two.leave().await;

    let wrong = Settings { url: broker.url.replace("guest:guest", "guest:Sesame42"), ..broker.settings() };
    let refused = why_not(wrong).await?;
    assert!(refused.contains("ACCESS_REFUSED") && !refused.contains("Sesame42"), "{refused}");
    // A broker for whom another authority vouches, and one with another name.
    let stranger = Settings { ca_file: None, ..secure.clone() };
    let unknown = why_not(stranger).await?;
    assert!(unknown.contains("ertificate") || unknown.contains("bus.ca_file"), "{unknown}");
    let other_name = Settings { url: url.replace("localhost", "127.0.0.1"), ..secure.clone() };
    assert!(why_not(other_name).await?.contains("ertificate"));
    let missing = Settings { ca_file: Some("/nonexistent/ca.pem".into()), ..secure };
    assert!(why_not(missing).await?.contains("/nonexistent/ca.pem"));
    Ok(())
}
