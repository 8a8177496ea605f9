//! Streams of events, as a user reads them.

use std::collections::VecDeque;

use futures_util::{Stream, StreamExt};
use harness::client::Client;
use shared::api::event::Event;

/// Reads the events behind a cursor, in the order in which they are told, until one of them ends it, which is the last.
pub async fn read(api: &Client, after: i64, mut ends: impl FnMut(&Event) -> bool) -> anyhow::Result<Vec<Event>> {
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build()?;
    let request = client.get(format!("{}/v1/events?after={after}", api.url())).header("accept", "text/event-stream");
    let answer = request.bearer_auth(api.token().unwrap_or_default()).send().await?;
    anyhow::ensure!(answer.status() == 200, "{}", answer.status());
    let mut told = std::pin::pin!(events(answer));
    let mut read = Vec::new();
    loop {
        let event = tokio::time::timeout(harness::wait::PATIENCE, told.next()).await?;
        let Some(event) = event else { anyhow::bail!("the stream has ended after {read:?}") };
        read.push(event?);
        if read.last().is_some_and(&mut ends) {
            return Ok(read);
        }
    }
}

/// What a stream tells.
fn events(answer: reqwest::Response) -> impl Stream<Item = anyhow::Result<Event>> {
    let begin = (answer.bytes_stream(), String::new(), VecDeque::<Event>::new());
    futures_util::stream::try_unfold(begin, |(mut bytes, mut text, mut events)| async move {
        loop {
            if let Some(event) = events.pop_front() {
                return Ok(Some((event, (bytes, text, events))));
            }
            let Some(chunk) = bytes.next().await else { return Ok(None) };
            text.push_str(&String::from_utf8(chunk?.to_vec())?);
            while let Some((message, rest)) = text.split_once("\n\n") {
                let data: String = message.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                if !data.is_empty() {
                    events.push_back(serde_json::from_str(&data)?);
                }
                text = rest.to_string();
            }
        }
    })
}
