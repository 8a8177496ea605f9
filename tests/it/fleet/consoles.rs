//! What users and hosts see of several controllers behind one address: a console's ticket is good at any of
//! them, once; hosts are told every address of every controller.

use std::sync::Arc;

use futures_util::SinkExt;
use futures_util::future::join_all;
use harness::fleet::Fleet;
use harness::sim::greeting;
use harness::wait::eventually;
use reqwest::Method;
use serde_json::json;
use shared::api::vm::ConsoleTicket;
use tokio_tungstenite::tungstenite::Message;

use crate::console::{attach_at, expect};

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_at_any_controller_and_once() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 1).await?;
    let vm = fleet.vm(&fleet.image, &fleet.network).await?;
    let path = format!("/v1/vms/{}/console", vm.id);
    let ticket = async |by: usize| -> anyhow::Result<String> {
        let body = json!({ "kind": "serial" });
        Ok(fleet.api.send_by(by, Method::POST, &path, Some(&body)).await?.read::<ConsoleTicket>()?.path)
    };
    let attach = async |at: usize, path: &str| attach_at(&fleet.controllers[at].url, &fleet.sim, path).await;
    for (by, at) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let path = ticket(by).await?;
        let opened = attach(at, &path).await?;
        let mut socket = opened.map_err(|status| anyhow::anyhow!("of {by} at {at}: {status}"))?;
        expect(&mut socket, &greeting(vm.id, "serial")).await?;
        for n in 0..10 {
            let line = format!("line {n} of {}\n", "x".repeat(n * 1000));
            socket.send(Message::Binary(line.clone().into())).await?;
            expect(&mut socket, &line).await?;
        }
        socket.close(None).await?;
        for again in [0, 1] {
            assert_eq!(attach(again, &path).await?.err(), Some(404), "of {by}, used at {at}, again at {again}");
        }
    }
    // Whoever is first has it, wherever they come.
    for by in [0, 1] {
        let path = ticket(by).await?;
        let all = join_all([0, 1, 0, 1].map(|at| attach(at, &path))).await;
        let all = all.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        assert_eq!(all.iter().filter(|opened| opened.is_ok()).count(), 1);
        assert!(all.iter().filter_map(|opened| opened.as_ref().err()).all(|status| *status == 404));
    }
    // What is no WebSocket is refused by the issuer as by any other, and does not use the ticket up.
    let path = ticket(0).await?;
    assert_eq!(fleet.api.send_by(1, Method::GET, &path, None).await?.status, 400);
    assert!(attach(1, &path).await?.is_ok());
    // A ticket of one that is gone, or that never was.
    let path = ticket(0).await?;
    let issuer = Arc::clone(&fleet.controllers[0]);
    issuer.kill().await?;
    let status = attach(1, &path).await?.err();
    assert!(matches!(status, Some(404 | 503)), "{status:?}");
    let made_up = format!("/v1/console/{}.secret", shared::id::ControllerId::new());
    assert_eq!(attach(1, &made_up).await?.err(), Some(404));
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_finds_its_issuer_although_nobody_answers_at_the_first_address() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 1).await?;
    fleet.controllers[0].stop().await?;
    fleet.controllers[0].advertise(&["https://127.255.255.254:1", &fleet.controllers[0].advertised])?;
    fleet.controllers[0].start().await?;
    fleet.whole().await?;
    let vm = fleet.vm(&fleet.image, &fleet.network).await?;
    let (path, body) = (format!("/v1/vms/{}/console", vm.id), json!({ "kind": "serial" }));
    let ticket: ConsoleTicket = fleet.api.send_by(0, Method::POST, &path, Some(&body)).await?.read()?;
    let opened = attach_at(&fleet.controllers[1].url, &fleet.sim, &ticket.path).await?;
    let mut socket = opened.map_err(|status| anyhow::anyhow!("{status}"))?;
    expect(&mut socket, &greeting(vm.id, "serial")).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_told_every_address_of_every_controller() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 2).await?;
    // A second network, on which the first controller is reached as well.
    let second = "https://10.255.0.1:8443";
    fleet.controllers[0].stop().await?;
    fleet.controllers[0].advertise(&[&fleet.controllers[0].advertised, second])?;
    fleet.controllers[0].start().await?;
    fleet.whole().await?;
    let urls: Vec<_> = fleet.controllers.iter().map(|controller| controller.advertised.as_str()).collect();
    eventually("every host knows all addresses, the second ones last", async || {
        for host in fleet.sim.hosts() {
            let told = host.controllers();
            let (firsts, rest) = told.split_at(told.len().min(2));
            anyhow::ensure!(rest == [second] && urls.iter().all(|url| firsts.iter().any(|t| t == url)), "{told:?}");
        }
        Ok(())
    })
    .await?;
    fleet.stop().await
}
