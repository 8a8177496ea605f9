//! The consoles of a running VM, as streams of bytes.
//!
//! Bytes are passed on as they are: what they mean is between the guest and the user's terminal.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use shared::api::vm::ConsoleKind;
use shared::id::VmId;
use shared::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;

use crate::app::App;

/// A console: read what the guest writes, write what the user types.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens a console of a running VM.
///
/// # Errors
/// `invalid_state` when the VM does not run, `not_found` when there is no such VM here,
/// `host_failed` when the console cannot be opened.
pub async fn open(app: &Arc<App>, vm_id: VmId, kind: ConsoleKind) -> Result<Box<dyn Stream>> {
    let consoles = app.hypervisor.consoles(vm_id).await?;
    let closed = || Error::new(Code::InvalidState, "the VM has no console now: it does not run");
    let failed = |error: io::Error| Error::new(Code::HostFailed, "the console could not be opened").caused_by(&error);
    match kind {
        ConsoleKind::Serial => {
            let path = consoles.serial.ok_or_else(closed)?;
            Ok(Box::new(Terminal::open(&path).map_err(failed)?))
        }
        ConsoleKind::Vnc => {
            let port = consoles.vnc_port.ok_or_else(closed)?;
            let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            Ok(Box::new(stream))
        }
    }
}

/// The host's end of a serial line. QEMU has set the terminal to raw mode when it made it. To the
/// runtime a terminal is a pipe: one descriptor to read from, one to write to.
#[derive(Debug)]
struct Terminal {
    read: pipe::Receiver,
    write: pipe::Sender,
}

impl Terminal {
    fn open(path: &str) -> io::Result<Self> {
        // Without O_NOCTTY it could become the agent's controlling terminal.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path)?;
        let write = pipe::Sender::from_file_unchecked(file.try_clone()?)?;
        Ok(Self { read: pipe::Receiver::from_file_unchecked(file)?, write })
    }
}

impl AsyncRead for Terminal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.read).poll_read(cx, buf) {
            // The other end of a pseudo-terminal closes with EIO: that is the end of the stream.
            Poll::Ready(Err(e)) if e.raw_os_error() == Some(Errno::EIO as i32) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
