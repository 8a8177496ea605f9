//! What a refusal leaves unread of a request is read and thrown away, within bounds, before the answer
//! goes out.
//!
//! A server that closes a connection while its client still sends makes the client's kernel drop the
//! answer: the client sees a broken pipe instead of the 413 that would have told it what to do.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::header;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// Most that is thrown away; a client with more than this to send is cut off.
const MAX_BYTES: usize = 16 << 20;
/// Longest time for it.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Where a request's body is found again when its handler has dropped it.
pub(super) struct Rest(Arc<Mutex<Option<Body>>>);

/// A body that goes back to its [`Rest`] when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    rest: Arc<Mutex<Option<Body>>>,
}

/// Lends the body of `request` to its handler.
pub(super) fn lend(request: &mut Request) -> Option<Rest> {
    // Without a body there is nothing to come; who awaits `100 Continue` has not sent it yet.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return None;
    }
    let rest = Arc::default();
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = Body::new(Lent { body: Some(body), rest: Arc::clone(&rest) });
    Some(Rest(rest))
}

impl Rest {
    /// Reads what the handler left, and throws it away.
    pub(super) async fn discard(self) {
        let Some(mut body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let read = async {
            let mut left = MAX_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    return;
                }
            }
        };
        // Too slow or too much: the connection closes, as it would have at once.
        let _ = tokio::time::timeout(MAX_TIME, read).await;
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !body.is_end_stream()
        {
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_not_read_comes_back_and_what_was_does_not() {
        let request =
            || Request::new(Body::from_stream(futures_util::stream::iter(["ab", "cd"].map(Ok::<_, axum::Error>))));
        let mut unread = request();
        let rest = lend(&mut unread).unwrap();
        drop(unread);
        assert!(rest.0.lock().unwrap().is_some());
        rest.discard().await;

        let mut read = request();
        let rest = lend(&mut read).unwrap();
        assert_eq!(read.into_body().collect().await.unwrap().to_bytes(), "abcd");
        assert!(rest.0.lock().unwrap().is_none());
        assert!(lend(&mut Request::new(Body::empty())).is_none());
    }
}
