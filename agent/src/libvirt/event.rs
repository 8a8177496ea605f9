//! Registration for libvirt's events: with [`super::abort`] the agent's only module with `unsafe`, because the safe wrapper
//! has the event loop but not the registration.
//!
//! A callback runs on the event loop's thread and does nothing but put a message into a bounded
//! channel: no call to libvirt, no wait. A full channel raises a flag instead, upon which the reader
//! compares a full list.
#![expect(unsafe_code, reason = "callbacks are registered through virt-sys, which the safe wrapper leaves out")]

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;
use virt_sys as sys;

/// What libvirt told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A domain was defined, started, stopped, paused … : read it again.
    Lifecycle(Uuid),
    /// A device of a domain came or went, or its guest agent did.
    Device(Uuid),
    /// The connection is closed.
    Closed,
    /// Somebody suspects that libvirt does not answer.
    Probe,
    /// The agent stops.
    Stop,
}

/// Where messages go.
#[derive(Clone, Debug)]
pub struct Sink {
    queue: SyncSender<Message>,
    overflow: Arc<AtomicBool>,
}

impl Sink {
    /// A sink into a bounded channel.
    #[must_use]
    pub fn new(queue: SyncSender<Message>) -> Self {
        Self { queue, overflow: Arc::default() }
    }

    /// Puts a message in, or raises the overflow flag.
    pub fn put(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(message) {
            self.overflow.store(true, Ordering::Release);
        }
    }

    /// Whether messages were lost since the last call.
    #[must_use]
    pub fn take_overflow(&self) -> bool {
        self.overflow.swap(false, Ordering::AcqRel)
    }
}

/// Starts libvirt's event loop, once per process and before the first connection.
///
/// # Errors
/// When libvirt cannot set it up, or there is no thread for it.
pub fn start_loop() -> Result<(), String> {
    static LOOP: OnceLock<Result<(), String>> = OnceLock::new();
    LOOP.get_or_init(|| {
        // Errors are handled where they occur; without this the library prints each to standard error.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|e| e.to_string())?;
        let run = || loop {
            if let Err(error) = virt::event::event_run_default_impl() {
                tracing::error!(error = %error, "libvirt's event loop ended; states come from listings only");
                return;
            }
        };
        std::thread::Builder::new().name("libvirt-events".into()).spawn(run).map(|_| ()).map_err(|e| e.to_string())
    })
    .clone()
}

/// The callbacks of one connection; they are taken back when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    connect: Connect,
    ids: Vec<c_int>,
    close: bool,
}

impl Subscription {
    /// Registers for the events of all domains and for the end of the connection.
    ///
    /// # Errors
    /// When libvirt refuses; what was registered until then is taken back.
    pub fn new(connect: &Connect, sink: &Sink) -> Result<Self, Error> {
        let mut subscription = Self { connect: connect.clone(), ids: Vec::new(), close: false };
        // SAFETY: each function has the signature that libvirt documents for its event id, and
        // libvirt calls it with exactly that signature; the generic type is only how it is passed.
        let (lifecycle, removed, added, agent) = unsafe {
            (
                std::mem::transmute::<Lifecycle, Generic>(on_lifecycle),
                std::mem::transmute::<Device, Generic>(on_device),
                std::mem::transmute::<Device, Generic>(on_device),
                std::mem::transmute::<Agent, Generic>(on_agent),
            )
        };
        subscription.register(sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, sink)?;
        for (id, callback) in [
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, added),
            (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
        ] {
            // A driver that does not know one of these still tells of lifecycles.
            if let Err(error) = subscription.register(id, callback, sink) {
                tracing::debug!(event.id = id, error = %error, "libvirt does not tell of this event");
            }
        }
        subscription.register_close(sink);
        Ok(subscription)
    }

    fn register(&mut self, id: sys::virDomainEventID, callback: Generic, sink: &Sink) -> Result<(), Error> {
        let opaque = Box::into_raw(Box::new(sink.clone())).cast::<c_void>();
        // SAFETY: the connection is alive for as long as `self.connect` is; a null domain means all
        // domains; `opaque` is a `Box<Sink>` that only the callbacks read and only `free` takes back.
        let number = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connect.as_ptr(),
                std::ptr::null_mut(),
                id as c_int,
                Some(callback),
                opaque,
                Some(free),
            )
        };
        if number < 0 {
            let error = Error::last_error();
            // SAFETY: a refused registration has taken nothing over, so the box is still ours alone.
            unsafe { free(opaque) };
            return Err(error);
        }
        self.ids.push(number);
        Ok(())
    }

    fn register_close(&mut self, sink: &Sink) {
        let opaque = Box::into_raw(Box::new(sink.clone())).cast::<c_void>();
        // SAFETY: as in `register`; `on_close` has the documented signature.
        let result =
            unsafe { sys::virConnectRegisterCloseCallback(self.connect.as_ptr(), Some(on_close), opaque, Some(free)) };
        self.close = result == 0;
        if !self.close {
            // SAFETY: a refused registration has taken nothing over, so the box is still ours alone.
            unsafe { free(opaque) };
            tracing::debug!(error = %Error::last_error(), "libvirt does not tell when the connection ends");
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            // SAFETY: the connection is alive and the number came from a registration on it. libvirt
            // frees the box by `free`, also when the other side of the connection is gone.
            unsafe { sys::virConnectDomainEventDeregisterAny(self.connect.as_ptr(), id) };
        }
        if self.close {
            // SAFETY: the same function was registered on this connection.
            unsafe { sys::virConnectUnregisterCloseCallback(self.connect.as_ptr(), Some(on_close)) };
        }
    }
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type Lifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type Device = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);
type Agent = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes a valid domain and the pointer that was registered.
    unsafe { forward(domain, opaque, Message::Lifecycle) };
    0
}

unsafe extern "C" fn on_device(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { forward(domain, opaque, Message::Device) };
}

unsafe extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `on_lifecycle`.
    unsafe { forward(domain, opaque, Message::Device) };
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `Box<Sink>` that was registered and lives until `free`.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    let _ = catch_unwind(AssertUnwindSafe(|| sink.put(Message::Closed)));
}

/// Puts a message about `domain` into the sink.
///
/// # Safety
/// `domain` is valid, and `opaque` is the `Box<Sink>` of a registration that was not freed yet.
unsafe fn forward(domain: sys::virDomainPtr, opaque: *mut c_void, message: fn(Uuid) -> Message) {
    let mut bytes = [0_u8; 16];
    // SAFETY: the domain is valid for the time of the callback, and a raw UUID has 16 bytes.
    let result = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    // SAFETY: the caller vouches for `opaque`; the sink is shared only by reference.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    if result == 0 {
        // A panic must not cross into C.
        let _ = catch_unwind(AssertUnwindSafe(|| sink.put(message(Uuid::from_bytes(bytes)))));
    }
}

/// Takes back what `register` gave away; libvirt calls it once per registration.
unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Box::into_raw(Box<Sink>)`, and nobody uses it after this.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}
