//! Benchmarks run, at a small size: that none of them rots. Their figures mean nothing here.

use std::time::Duration;

use harness::bench;

#[tokio::test(flavor = "multi_thread")]
async fn hosts() -> anyhow::Result<()> {
    bench::hosts::run(&[20, 40], Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn create() -> anyhow::Result<()> {
    bench::create::run(&[1, 20], 3).await
}
