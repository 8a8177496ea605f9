//! Leases: no address twice, none that is reserved, and the last one is found.

use std::collections::BTreeSet;
use std::sync::Mutex;

use proptest::prelude::*;
use shared::id::{NicId, VmId};

use super::*;
use crate::db::nic;
use crate::db::testing::{Seed, TestDb, dbs};

/// A network of its own for one case.
fn network(seed: &Seed, name: &str, cidr: &str, service: u32) -> Network {
    let cidr: Ipv4Net = cidr.parse().unwrap();
    let at = |n: u32| Ipv4Addr::from(u32::from(cidr.network()) + n);
    Network {
        id: NetworkId::new(),
        name: name.parse().unwrap(),
        cidr,
        gateway: Some(at(1)),
        service_address: at(service),
        ..seed.network.clone()
    }
}

/// Leases and takes an address; a refusal is part of the answer, so that a case can go on after it.
async fn take(tx: &mut Tx, network: NetworkId, vm: VmId, wanted: Option<Ipv4Addr>) -> Result<Result<Ipv4Addr, Code>> {
    match nic::add(tx, vm, 0, (network, wanted), || NicId::new().to_string()).await {
        Ok(nic) => Ok(Ok(nic.ip)),
        Err(super::super::Error::Refused(refused)) => Ok(Err(refused.code)),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Debug)]
enum Op {
    Next,
    Wanted(u32),
    Release(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => Just(Op::Next),
        1 => (0_u32..40).prop_map(Op::Wanted),
        2 => any::<prop::sample::Index>().prop_map(|i| Op::Release(i.index(64))),
    ];
    prop::collection::vec(op, 1..60)
}

/// Runs the operations in one transaction; answers what each lease answered, and what was free then.
async fn run(db: &TestDb, seed: &Seed, network: Network, ops: Vec<Op>) -> Vec<(Op, Result<Ipv4Addr, Code>)> {
    let seed = seed.clone();
    let ran = db.write(move |tx| {
        Box::pin(async move {
            insert(tx, &network).await?;
            let vm = seed.insert_vm(tx, network.name.as_str()).await?;
            let mut taken = Vec::new();
            let mut outcomes = Vec::new();
            for op in ops {
                let outcome = match op {
                    Op::Next => take(tx, network.id, vm, None).await?,
                    Op::Wanted(n) => {
                        take(tx, network.id, vm, Some((u32::from(network.cidr.network()) + n).into())).await?
                    }
                    Op::Release(_) if taken.is_empty() => continue,
                    Op::Release(n) => {
                        let ip: Ipv4Addr = taken.swap_remove(n % taken.len());
                        query("DELETE FROM nic WHERE ip = $1").bind(ip.to_string()).execute(tx.conn()).await?;
                        outcomes.push((op, Ok(ip)));
                        continue;
                    }
                };
                taken.extend(outcome.as_ref().ok());
                outcomes.push((op, outcome));
            }
            // Leave nothing, so the next case may use the same addresses.
            for sql in ["DELETE FROM nic", "DELETE FROM vm"] {
                query(sql).execute(tx.conn()).await?;
            }
            delete(tx, network.id).await?;
            Ok(outcomes)
        })
    });
    ran.await.unwrap()
}

fn check(network: &Network, outcomes: &[(Op, Result<Ipv4Addr, Code>)]) {
    let guests: BTreeSet<Ipv4Addr> =
        network.cidr.hosts().filter(|ip| Some(*ip) != network.gateway && *ip != network.service_address).collect();
    let mut taken = BTreeSet::new();
    for (op, outcome) in outcomes {
        match (op, outcome) {
            (Op::Release(_), Ok(ip)) => assert!(taken.remove(ip)),
            (Op::Next | Op::Wanted(_), Ok(ip)) => {
                assert!(guests.contains(ip), "{ip} is not for guests");
                assert!(taken.insert(*ip), "{ip} twice");
            }
            (Op::Next, Err(code)) => assert_eq!((*code, &taken), (Code::Exhausted, &guests)),
            (Op::Wanted(n), Err(code)) => {
                let ip = Ipv4Addr::from(u32::from(network.cidr.network()) + n);
                let expected = if guests.contains(&ip) { Code::InUse } else { Code::InvalidRequest };
                assert_eq!(*code, expected);
                assert_eq!(taken.contains(&ip), expected == Code::InUse);
            }
            (Op::Release(_), Err(_)) => unreachable!(),
        }
    }
}

#[test]
fn a_lease_is_never_reserved_nor_taken_and_the_last_one_is_found() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let dbs = runtime.block_on(async {
        let mut seeded = Vec::new();
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            seeded.push((db, seed));
        }
        seeded
    });
    let cidr = prop_oneof![Just("10.1.0.0/29"), Just("192.168.255.240/28"), Just("10.255.255.224/27")];
    proptest!(ProptestConfig::with_cases(48), |(cidr in cidr, service in prop_oneof![Just(2_u32), Just(6)], ops in ops())| {
        for (db, seed) in &dbs {
            let network = network(seed, "case", cidr, service);
            check(&network, &runtime.block_on(run(db, seed, network.clone(), ops.clone())));
        }
    });
}

#[tokio::test]
async fn a_larger_network_gives_every_address_and_says_when_none_is_left() {
    for db in dbs().await {
        let seed = Seed::planted(&db).await;
        let network = network(&seed, "full", "10.2.0.0/25", 2);
        let outcomes = run(&db, &seed, network.clone(), vec![Op::Next; 125]).await;
        check(&network, &outcomes);
        assert_eq!(outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count(), 124);
    }
}

#[tokio::test]
async fn a_released_address_is_not_given_out_again_at_once() {
    for db in dbs().await {
        let seed = Seed::planted(&db).await;
        let network = network(&seed, "rotating", "10.3.0.0/24", 2);
        let outcomes = run(&db, &seed, network, vec![Op::Next, Op::Release(0), Op::Next]).await;
        assert_ne!(outcomes[0].1, outcomes[2].1);
    }
}

#[tokio::test]
async fn concurrent_leases_differ() {
    for db in dbs().await {
        let seed = Seed::planted(&db).await;
        let leases = (0..20).map(|n| {
            let seed = seed.clone();
            db.write(move |tx| {
                Box::pin(async move {
                    let vm = seed.insert_vm(tx, &format!("vm{n}")).await?;
                    take(tx, seed.network.id, vm, None).await
                })
            })
        });
        let leased: BTreeSet<_> =
            futures_util::future::join_all(leases).await.into_iter().map(|ip| ip.unwrap().unwrap()).collect();
        assert_eq!(leased.len(), 20);
    }
}

#[tokio::test]
async fn a_network_closes_only_when_nobody_is_in_it_and_then_lets_nobody_in() {
    for db in dbs().await {
        let seed = Seed::planted(&db).await;
        let id = seed.network.id;
        let tenant = seed.clone();
        db.write(move |tx| {
            Box::pin(async move {
                let vm = tenant.insert_vm(tx, "web").await?;
                take(tx, id, vm, None).await
            })
        })
        .await
        .unwrap()
        .unwrap();
        let closed = db.write(move |tx| Box::pin(async move { close(tx, id).await })).await;
        assert!(
            matches!(closed, Err(super::super::Error::Refused(e)) if e.code == Code::InUse && e.message.contains("VM web"))
        );
        let code = db
            .write(move |tx| {
                Box::pin(async move {
                    query("DELETE FROM nic").execute(tx.conn()).await?;
                    close(tx, id).await?;
                    let refused = take(tx, id, VmId::new(), None).await?;
                    reopen(tx, id).await?;
                    hold(tx, id).await?;
                    Ok(refused)
                })
            })
            .await
            .unwrap();
        assert_eq!(code, Err(Code::InvalidState));
    }
}

#[tokio::test]
async fn a_row_reads_back_and_overlaps_are_found() {
    for db in dbs().await {
        let seed = Seed::planted(&db).await;
        let mut conn = db.read().await.unwrap();
        assert_eq!(get(&mut conn, seed.network.id).await.unwrap(), Some(seed.network.clone()));
        for (cidr, overlaps) in
            [("10.77.0.0/24", true), ("10.0.0.0/8", true), ("10.77.0.128/29", true), ("10.77.1.0/24", false)]
        {
            let found = overlapping(&mut conn, seed.cluster.id, cidr.parse().unwrap()).await.unwrap();
            assert_eq!(found.is_some(), overlaps, "{cidr}");
            let elsewhere = overlapping(&mut conn, ClusterId::new(), cidr.parse().unwrap()).await.unwrap();
            assert_eq!(elsewhere, None);
        }
    }
}

#[tokio::test]
async fn a_hardware_address_is_given_out_once_and_a_second_try_leaves_the_transaction_whole() {
    for test in dbs().await {
        let seed = Seed::planted(&test.db).await;
        let both = test.db.write(move |tx| {
            Box::pin(async move {
                let vm = seed.insert_vm(tx, "vm").await?;
                let given = Mutex::new(vec!["b", "a", "a", "a", "a"]);
                let mac = || given.lock().unwrap().pop().unwrap().to_string();
                for position in [0, 1] {
                    nic::add(tx, vm, position, (seed.network.id, None), mac).await?;
                }
                let cards = nic::of_vm(tx.conn(), vm).await?;
                Ok(cards.into_iter().map(|card| card.mac).collect::<Vec<_>>())
            })
        });
        assert_eq!(both.await.unwrap(), ["a", "b"]);
    }
}
