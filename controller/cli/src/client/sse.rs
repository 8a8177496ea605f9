//! Reading a stream of server-sent events.
//!
//! The parser takes bytes as they come, in pieces of any size. It never holds more than one event of
//! a bounded size.

use std::time::Duration;

use reqwest::Method;
use shared::error::Code;

use super::{Client, Failure};
use crate::error::{CliError, Result};

/// The largest event.
const MAX_EVENT: usize = 4 << 20;
/// The longest silence: the server sends a comment more often than this.
const SILENCE: Duration = Duration::from_secs(60);

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    parser: Parser,
}

impl Client {
    /// Opens a stream of events at the first controller that answers. Each is tried once.
    pub async fn open_stream(&self, path: &str, query: &[(&str, String)]) -> Result<Stream> {
        let mut tries = 1;
        loop {
            let error = match self.open_one(path, query).await {
                Ok(stream) => {
                    self.answered();
                    return Ok(stream);
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { error, .. }) => error,
            };
            if !self.next_address(&error) || tries >= self.addresses() {
                return Err(self.with_all_tried(error));
            }
            tries += 1;
        }
    }

    async fn open_one(&self, path: &str, query: &[(&str, String)]) -> Result<Stream, Failure> {
        let request = self.request(Method::GET, path, query, "text/event-stream");
        let request = request.build().map_err(|e| Failure::Final(CliError::Usage(e.to_string())))?;
        let response = self.http.execute(request).await.map_err(|e| self.connection_failure(&e))?;
        if !response.status().is_success() {
            let problem = Box::new(self.problem(response).await);
            return Err(match problem.code {
                Code::Unavailable | Code::OwnerLeft => {
                    Failure::Again { error: CliError::Problem(problem), after: None, elsewhere: true }
                }
                _ => Failure::Final(CliError::Problem(problem)),
            });
        }
        Ok(Stream { response, parser: Parser::default() })
    }
}

impl Stream {
    /// The data of the next event; `None` when the stream has ended, was cut or fell silent.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.parser.take() {
                return Some(data);
            }
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) => self.parser.push(&bytes),
                _ => return None,
            }
            if self.parser.buffer.len() > MAX_EVENT {
                return None;
            }
        }
    }
}

#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
    data: Vec<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of a whole event, when one has come.
    fn take(&mut self) -> Option<String> {
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if !self.data.is_empty() {
                    return Some(std::mem::take(&mut self.data).join("\n"));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_string());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_pieces_of_any_size() {
        let text = ": hello\r\n\r\nid: 1\nevent: x\ndata: {\"a\":\ndata: 1}\n\n:\n\ndata:two\n\ndata: half";
        for size in [1, 2, 3, 7, 100] {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                parser.push(piece);
                while let Some(data) = parser.take() {
                    seen.push(data);
                }
            }
            assert_eq!(seen, ["{\"a\":\n1}", "two"], "pieces of {size}");
        }
    }
}
