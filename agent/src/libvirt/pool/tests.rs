//! The pool and the order of calls, with calls that are as slow as each test says.

use std::sync::mpsc::{Receiver, Sender, channel};

use shared::id::VmId;
use tokio::sync::watch;

use super::super::lane::Lanes;
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_hung_call_costs_one_thread_and_others_go_on() {
    let pool = Pool::new(2).unwrap();
    let (release, hang) = channel::<()>();
    let hung = pool.run("hang", SHORT, None, move |_| {
        let _ = hang.recv();
        Ok(())
    });
    assert!(matches!(hung.await, Err(Error::Hung { call: "hang", .. })));
    assert_eq!(pool.run("add", LONG, None, |_| Ok(1 + 1)).await.unwrap(), 2);
    drop(release);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_forgotten_calls_are_left_out() {
    let pool = Pool::new(1).unwrap();
    let (release, hang) = channel::<()>();
    let (started, has_started) = channel::<()>();
    let first = pool.run("hang", LONG, None, move |_| {
        let _ = started.send(());
        let _ = hang.recv();
        Ok(())
    });
    let rest = async {
        tokio::task::spawn_blocking(move || has_started.recv()).await.unwrap().unwrap();
        for _ in 0..QUEUE_PER_THREAD {
            let run = pool.run("late", Duration::ZERO, None, |_| -> Result<(), Error> { panic!("must not run") });
            assert!(matches!(run.await, Err(Error::Hung { .. })));
        }
        assert!(matches!(pool.run("late", LONG, None, |_| Ok(())).await, Err(Error::Busy)));
        drop(release);
    };
    let (first, ()) = tokio::join!(first, rest);
    first.unwrap();
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_thread_survives() {
    let pool = Pool::new(1).unwrap();
    let result = pool.run("panic", LONG, None, |_| -> Result<(), Error> { panic!("as the wrapper may") }).await;
    assert!(matches!(result, Err(Error::Failed { call: "panic", .. })));
    assert_eq!(pool.run("add", LONG, None, |_| Ok(2)).await.unwrap(), 2);
}

/// A libvirt with one VM: whether it is defined, and what was done in which order.
#[derive(Clone)]
struct Slow {
    defined: Arc<watch::Sender<bool>>,
    log: Arc<Mutex<Vec<&'static str>>>,
}

/// Lets a slow call begin to be waited for, and end.
struct Handle {
    begun: Option<Receiver<()>>,
    release: Sender<()>,
}

impl Handle {
    async fn has_begun(&mut self) {
        let begun = self.begun.take().unwrap();
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
    }
}

impl Slow {
    fn new() -> Self {
        Self { defined: Arc::new(watch::Sender::new(false)), log: Arc::default() }
    }

    fn set(&self, what: &'static str, defined: bool) {
        self.log.lock().unwrap().push(what);
        self.defined.send_replace(defined);
    }

    fn log(&self) -> Vec<&'static str> {
        self.log.lock().unwrap().clone()
    }

    /// A definition that is inside libvirt until it is released, as an agent asks for it.
    fn define(
        &self,
        result: Result<(), Error>,
    ) -> (Handle, impl FnOnce(&mut Undo) -> Result<(), Error> + Send + use<>) {
        let (begins, begun) = channel();
        let (release, released) = channel();
        let slow = self.clone();
        let work = move |undo: &mut Undo| {
            if !*slow.defined.borrow() {
                let slow = slow.clone();
                *undo = Some(Box::new(move || {
                    slow.set("taken back", false);
                    Ok(())
                }));
            }
            let _ = begins.send(());
            let _ = released.recv();
            slow.set("defined", true);
            result
        };
        (Handle { begun: Some(begun), release }, work)
    }

    /// A deletion: it looks, and does what there is to do.
    fn delete(&self) -> impl FnOnce(&mut Undo) -> Result<bool, Error> + Send + use<> {
        let slow = self.clone();
        move |_| {
            let there = *slow.defined.borrow();
            slow.set("deleted", false);
            Ok(there)
        }
    }
}

/// Makes a call and gives it up when it is inside libvirt.
async fn begin_and_give_up<T: Send + 'static>(
    pool: &Pool,
    place: Place,
    handle: &mut Handle,
    work: impl FnOnce(&mut Undo) -> Result<T, Error> + Send + 'static,
) {
    tokio::select! {
        biased;
        _ = pool.run("define", LONG, Some(place), work) => panic!("it cannot have ended"),
        () = handle.has_begun() => {}
    }
}

#[tokio::test]
async fn the_effect_of_a_call_that_nobody_waits_for_is_taken_back_before_the_next_call_of_the_vm() {
    for end in [Ok(()), Err(Error::Failed { call: "define", message: "half done".into() })] {
        let (pool, lanes, slow, vm_id) = (Pool::new(2).unwrap(), Lanes::default(), Slow::new(), VmId::new());
        let (mut handle, define) = slow.define(end);
        begin_and_give_up(&pool, lanes.enter(vm_id, LONG).await.unwrap(), &mut handle, define).await;

        let soon = lanes.enter(vm_id, SHORT).await;
        assert!(matches!(soon, Err(Error::Occupied { vm_id: id, .. }) if id == vm_id), "it is not answered as done");
        assert_eq!(pool.run("add", LONG, None, |_| Ok(1)).await.unwrap(), 1, "others go on");

        let delete = async {
            let place = lanes.enter(vm_id, LONG).await.unwrap();
            pool.run("delete", LONG, Some(place), slow.delete()).await.unwrap()
        };
        let release = async { handle.release.send(()).unwrap() };
        let (was_there, ()) = tokio::join!(delete, release);
        assert!(!was_there);
        assert_eq!(slow.log(), ["defined", "taken back", "deleted"]);
    }
}

#[tokio::test]
async fn a_cancelled_call_is_taken_back_too_and_so_is_one_whose_answer_was_not_looked_at() {
    let (pool, lanes, slow, vm_id) = (Pool::new(1).unwrap(), Lanes::default(), Slow::new(), VmId::new());
    let (mut handle, define) = slow.define(Ok(()));
    let place = lanes.enter(vm_id, LONG).await.unwrap();
    {
        let call = pool.run("define", LONG, Some(place), define);
        tokio::pin!(call);
        tokio::select! {
            biased;
            _ = &mut call => panic!("it cannot have ended"),
            () = handle.has_begun() => {}
        }
        handle.release.send(()).unwrap();
        // The answer is there, and the caller goes away instead of looking at it.
        slow.defined.subscribe().wait_for(|defined| *defined).await.unwrap();
    }
    drop(lanes.enter(vm_id, LONG).await.unwrap());
    assert_eq!(slow.log(), ["defined", "taken back"]);
    assert!(lanes.go_ahead(vm_id).is_none(), "nobody is in the lane");
}

#[tokio::test]
async fn what_was_answered_stays_and_so_does_what_was_there_before() {
    let (pool, lanes, slow, vm_id) = (Pool::new(1).unwrap(), Lanes::default(), Slow::new(), VmId::new());
    for answered in [true, false] {
        let (mut handle, define) = slow.define(Ok(()));
        let place = lanes.enter(vm_id, LONG).await.unwrap();
        if answered {
            handle.release.send(()).unwrap();
            pool.run("define", LONG, Some(place), define).await.unwrap();
            continue;
        }
        begin_and_give_up(&pool, place, &mut handle, define).await;
        handle.release.send(()).unwrap();
    }
    drop(lanes.enter(vm_id, LONG).await.unwrap());
    assert_eq!(slow.log(), ["defined", "defined"], "a definition that replaced another one stays");
}
