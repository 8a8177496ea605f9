//! Benchmarks run, at a small size: that none of them rots. Their figures mean nothing here.

use std::time::Duration;

use harness::bench;

#[tokio::test(flavor = "multi_thread")]
async fn hosts() -> anyhow::Result<()> {
    bench::hosts::run(&[10, 20], Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn create() -> anyhow::Result<()> {
    bench::create::run(&[1, 100], 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn query() -> anyhow::Result<()> {
    bench::query::run(&[200, 400], 120, Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn placement() -> anyhow::Result<()> {
    bench::placement::run(&[1000]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn api() -> anyhow::Result<()> {
    bench::api::run(&[20, 40]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn soak() -> anyhow::Result<()> {
    bench::soak::run(5, Duration::from_secs(3)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn start() -> anyhow::Result<()> {
    bench::start::run(1, &[1, 2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn takeover() -> anyhow::Result<()> {
    bench::takeover::run(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn queues() -> anyhow::Result<()> {
    bench::queues::run(&[2, 200]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn restart() -> anyhow::Result<()> {
    bench::restart::run(&[200, 400], 20, Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle() -> anyhow::Result<()> {
    bench::idle::run(Duration::from_secs(1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bus() -> anyhow::Result<()> {
    bench::bus::run(200).await
}

#[test]
fn ring() -> anyhow::Result<()> {
    bench::ring::run()
}
