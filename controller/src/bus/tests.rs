//! The bus seen from outside, over both ways of the loopback.

use std::time::Duration;

use tokio::sync::Semaphore;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Add {
    a: u32,
    b: u32,
    about: Option<Uuid>,
}

request!("math.Add" to "math" => u32, Add);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Slow {
    about: Uuid,
}

request!("math.Slow" to "math" => (), Slow, about |m| m.about);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Changed {
    n: u32,
}

impl Message for Changed {
    const NAME: &'static str = "math.Changed";
}
impl Event for Changed {}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stranger;

request!("math.Stranger" to "math" => (), Stranger);

fn start(registry: Registry, loopback: Loopback, limits: Limits) -> Arc<Bus> {
    let me = ControllerId::new();
    let ring = Ring::new(me);
    ring.install(1, &[me]);
    let (transport, inbox) = LocalTransport::new(me, 100);
    let stop = (TaskTracker::new(), CancellationToken::new());
    Bus::start(registry, ring, Clock::default(), limits, loopback, (Arc::new(transport), inbox), stop)
}

fn math() -> Registry {
    let mut registry = Registry::new(TaskTracker::new());
    registry.serve(|_, m: Add| async move {
        m.a.checked_add(m.b).ok_or_else(|| Error::invalid("b", "the sum is too large"))
    });
    registry
}

#[tokio::test]
async fn a_request_is_answered_on_either_way() {
    for loopback in [Loopback::Direct, Loopback::Broker] {
        let bus = start(math(), loopback, Limits::default());
        let cx = Cx::system(Duration::from_secs(60));
        assert_eq!(bus.call(&cx, Add { a: 1, b: 2, about: None }).await, Ok(3));
        let error = bus.call(&cx, Add { a: u32::MAX, b: 1, about: None }).await.unwrap_err();
        assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidRequest, "b"));
        let many = (0..50).map(|n| Add { a: n, b: 0, about: None }).collect();
        let sums: Vec<_> = bus.call_all(&cx, 8, many).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(sums, (0..50).collect::<Vec<_>>());
        let figures = bus.services().next().unwrap().1.stats.figures();
        assert_eq!((figures.queued, figures.in_flight, figures.handled, figures.failed), (0, 0, 52, 1));
    }
}

#[tokio::test]
async fn an_unknown_message_is_answered_with_an_error() {
    for loopback in [Loopback::Direct, Loopback::Broker] {
        let bus = start(math(), loopback, Limits::default());
        let error = bus.call(&Cx::system(Duration::from_secs(60)), Stranger).await.unwrap_err();
        assert_eq!(error.code, Code::UnknownMessage);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_the_deadline_and_a_full_queue_refuses() {
    for loopback in [Loopback::Direct, Loopback::Broker] {
        let gate = Arc::new(Semaphore::new(0));
        let mut registry = Registry::new(TaskTracker::new());
        let held = gate.clone();
        registry.serve(move |_, _: Slow| {
            let held = held.clone();
            async move {
                let _permit = held.acquire().await;
                Ok(())
            }
        });
        let bus = start(registry, loopback, Limits { per_resource: 1, ..Limits::default() });
        let about = Uuid::now_v7();
        let cx = Cx::system(Duration::from_secs(5));
        // One runs, one waits, the third is refused.
        let calls = bus.call_all(&cx, 3, vec![Slow { about }; 3]).await;
        let codes: Vec<_> = calls.into_iter().map(|r| r.unwrap_err().code).collect();
        assert_eq!(codes, [Code::DeadlineExceeded, Code::DeadlineExceeded, Code::Unavailable]);
        gate.add_permits(2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_has_a_limit_of_its_own() {
    let gate = Arc::new(Semaphore::new(0));
    let mut registry = math();
    let held = gate.clone();
    registry.serve(move |_, _: Slow| {
        let held = held.clone();
        async move {
            let _permit = held.acquire().await;
            Ok(())
        }
    });
    registry.limit("math", 2).unwrap();
    assert!(registry.limit("magic", 2).unwrap_err().message.contains("math"), "the error names those that there are");
    let bus = start(registry, Loopback::Direct, Limits::default());
    let about: Vec<_> = (0..3).map(|_| Slow { about: Uuid::now_v7() }).collect();
    let calls = bus.call_all(&Cx::system(Duration::from_secs(5)), 3, about).await;
    let codes: Vec<_> = calls.into_iter().map(|r| r.unwrap_err().code).collect();
    assert_eq!(codes, [Code::DeadlineExceeded, Code::DeadlineExceeded, Code::Unavailable]);
    gate.add_permits(2);
}

#[tokio::test]
async fn a_handler_learns_that_nobody_waits_any_more() {
    for loopback in [Loopback::Direct, Loopback::Broker] {
        let (told, mut tells) = mpsc::unbounded_channel();
        let mut registry = Registry::new(TaskTracker::new());
        registry.serve(move |cx: Cx, _: Slow| {
            let told = told.clone();
            async move {
                told.send("begun").unwrap();
                cx.cancelled.cancelled().await;
                told.send("cancelled").unwrap();
                Ok(())
            }
        });
        let bus = start(registry, loopback, Limits::default());
        let cx = Cx::system(Duration::from_secs(60));
        {
            let call = bus.call(&cx, Slow { about: Uuid::now_v7() });
            tokio::pin!(call);
            tokio::select! {
                _ = &mut call => panic!("it ended by itself"),
                begun = tells.recv() => assert_eq!(begun, Some("begun")),
            }
        }
        assert_eq!(tells.recv().await, Some("cancelled"));
        assert!(!cx.cancelled.is_cancelled());
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_alone_is_let_go_of_when_others_come() {
    let mut registry = math();
    registry.serve(|_, _: Slow| async move { std::future::pending::<Result<(), Error>>().await });
    let bus = start(registry, Loopback::Direct, Limits::default());
    let cx = Cx::system(Duration::from_secs(3600));
    let call = bus.call(&cx, Slow { about: Uuid::from_u128(1) });
    let meanwhile = async {
        while bus.queue_sizes().0 == 0 {
            tokio::task::yield_now().await;
        }
        // It may wait for what the new owner does, which waits for this to be let go of.
        bus.ring.install(2, &[ControllerId::new()]);
        bus.until_let_go().await;
    };
    let (_, let_go) = tokio::join!(call, tokio::time::timeout(Duration::from_secs(60), meanwhile));
    assert!(let_go.is_ok());
    let figures = bus.services().next().unwrap().1.stats.figures();
    assert_eq!((figures.queued, figures.in_flight), (0, 0), "what was cut off counts no more");
}

/// What is sent waits for a broker that is away.
struct Away(tokio::sync::watch::Sender<Health>);

#[async_trait::async_trait]
impl Transport for Away {
    async fn send(&self, _: ControllerId, _: &str, _: Vec<u8>, ttl: Duration) -> Result<(), Error> {
        tokio::time::sleep(ttl).await;
        Err(Error::new(Code::Unavailable, "the broker is away"))
    }
    async fn broadcast(&self, _: Vec<u8>) -> Result<Told, Error> {
        Ok(Box::pin(std::future::pending()))
    }
    async fn forget(&self, _: ControllerId) {}
    fn watch(&self) -> tokio::sync::watch::Receiver<Health> {
        self.0.subscribe()
    }
    async fn close(&self) {}
}

fn start_away(registry: Registry, ring: Ring) -> Arc<Bus> {
    let transport = Arc::new(Away(tokio::sync::watch::Sender::new(Health::local(Clock::default().now()))));
    let (_, received) = mpsc::channel(1);
    let stop = (TaskTracker::new(), CancellationToken::new());
    Bus::start(registry, ring, Clock::default(), Limits::default(), Loopback::Direct, (transport, received), stop)
}

#[tokio::test(start_paused = true)]
async fn who_leaves_does_not_wait_for_ever_until_its_last_events_are_told() {
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let ring = Ring::new(me);
    ring.install(1, &[other, me]);
    let bus = start_away(Registry::new(TaskTracker::new()), ring);
    let cx = Cx::system(Duration::from_secs(3600));
    // More than are told together.
    (0..100).for_each(|n| bus.publish(&cx, &Changed { n }));
    let left = tokio::time::timeout(Duration::from_secs(60), bus.close()).await;
    assert!(left.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_the_broker_is_done_here_when_its_owner_has_gone() {
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let ring = Ring::new(me);
    ring.install(1, &[other, me]);
    let about = (0..).map(Uuid::from_u128).find(|id| !ring.is_mine(*id));
    let mut registry = Registry::new(TaskTracker::new());
    registry.serve(|_, _: Slow| async { Ok(()) });
    let bus = start_away(registry, ring.clone());
    let cx = Cx::system(Duration::from_secs(3600));
    let asked = bus.call(&cx, Slow { about: about.unwrap() });
    let dies = async {
        while bus.waiting.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        ring.install(2, &[me]);
        bus.controller_left(other);
    };
    let (answer, ()) = tokio::join!(asked, dies);
    assert_eq!(answer, Ok(()));
    // Whoever has chosen it by an older ring is told at once.
    let gone = bus.call_at(other, &cx, Slow { about: Uuid::nil() }).await.unwrap_err();
    assert_eq!(gone.code, Code::OwnerLeft);
}

#[tokio::test]
async fn events_come_in_order() {
    let mut registry = math();
    let (seen, mut events) = mpsc::unbounded_channel();
    registry.subscribe(move |event: Changed| {
        let seen = seen.clone();
        async move { seen.send(event.n).unwrap() }
    });
    let bus = start(registry, Loopback::Direct, Limits::default());
    let cx = Cx::system(Duration::from_secs(60));
    for n in 0..10 {
        bus.publish(&cx, &Changed { n });
    }
    for n in 0..10 {
        assert_eq!(events.recv().await, Some(n));
    }
}

#[test]
fn an_envelope_has_one_outer_key() {
    let cx = Cx::system(Duration::from_secs(60));
    let envelope = Envelope::wrap(&cx, "math", &Changed { n: 7 }, 3, 1_764_000_000_123).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&envelope.encode().unwrap()).unwrap();
    let inner = &json["math.Changed"];
    assert_eq!(json.as_object().unwrap().len(), 1);
    assert_eq!((&inner["body"]["n"], &inner["created_at"]), (&7.into(), &1_764_000_000_123_i64.into()));
    assert_eq!((&inner["service_id"], &inner["headers"]["generation"]), (&"math".into(), &3.into()));
    for bad in ["", "{}", "[]", "{\"a\":{}}", "{\"a\": 1}"] {
        assert_eq!(Envelope::decode(bad.as_bytes()).unwrap_err().code, Code::UnknownMessage);
    }
}
