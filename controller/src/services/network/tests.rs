//! Networks through the bus.

use shared::api::cluster::CreateCluster as ClusterBody;
use shared::api::job::JobState;
use shared::api::network::{CreateNetwork as Body, NetworkKind};
use shared::id::{AccountId, ClusterId, NetworkId};
use shared::wire::Empty;
use shared::wire::network::DeleteNetwork as OnHost;
use shared::{Code, Error};

use crate::db;
use crate::messages::cluster::CreateCluster;
use crate::messages::network::{CreateNetwork, DeleteNetwork, GetNetwork, ListNetworks};
use crate::services::testing::{TestSystem, call_of, systems, with_key};

fn network(name: &str, cidr: &str) -> CreateNetwork {
    let body = Body {
        id: None,
        name: name.parse().unwrap(),
        kind: NetworkKind::Nat,
        cidr: cidr.parse().unwrap(),
        cluster_id: None,
        gateway: None,
        dns: Vec::new(),
        mtu: None,
        uplink: None,
        vlan: None,
    };
    CreateNetwork { id: NetworkId::new(), body }
}

#[tokio::test]
async fn a_network_gets_what_was_left_open_and_is_made_once() {
    for system in systems().await {
        let wanted = network("web", "10.80.0.0/24");
        let made = system.by_tenant(wanted.clone()).await.unwrap();
        assert_eq!((made.cluster_id, made.mtu), (system.seed.cluster.id, 1500));
        assert_eq!(
            (made.gateway.unwrap().to_string(), made.service_address.to_string()),
            ("10.80.0.1".into(), "10.80.0.254".into())
        );
        assert_eq!(system.by_tenant(GetNetwork { id: made.id }).await.unwrap(), made);
        assert_eq!(system.by_tenant(wanted.clone()).await.unwrap(), made);
        let other = CreateNetwork { id: wanted.id, ..network("web", "10.81.0.0/24") };
        let conflict = system.by_tenant(other).await.unwrap_err();
        assert!(
            conflict.code == Code::Conflict && conflict.message.contains("cidr, gateway, service_address"),
            "{conflict}"
        );
        let stranger = call_of(AccountId::new(), false);
        assert_eq!(system.bus.call(&stranger, wanted).await.unwrap_err().code, Code::Conflict);
        assert_eq!(system.bus.call(&stranger, ListNetworks::default()).await.unwrap().items, []);
    }
}

#[tokio::test]
async fn a_repetition_under_the_same_key_is_the_first_network() {
    for system in systems().await {
        let cx = with_key(&system.tenant, "k", "h");
        let first = system.bus.call(&cx, network("web", "10.80.0.0/24")).await.unwrap();
        let second = system.bus.call(&cx, network("web", "10.80.0.0/24")).await.unwrap();
        assert_eq!(first, second);
        let mut dry = system.tenant.clone();
        dry.dry_run = true;
        let planned = system.bus.call(&dry, network("dry", "10.90.0.0/24")).await.unwrap();
        assert_eq!(system.by_tenant(GetNetwork { id: planned.id }).await.unwrap_err().code, Code::NotFound);
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_the_field_named() {
    for system in systems().await {
        let refused = async |change: fn(&mut Body)| -> Error {
            let mut wanted = network("web", "10.80.0.0/24");
            change(&mut wanted.body);
            system.by_tenant(wanted).await.unwrap_err()
        };
        let field = |error: &Error| error.fields.first().map(|f| f.field.clone()).unwrap_or_default();
        assert_eq!(field(&refused(|b| b.cidr = "8.8.8.0/24".parse().unwrap()).await), "cidr");
        assert_eq!(field(&refused(|b| b.gateway = Some("10.81.0.1".parse().unwrap())).await), "gateway");
        assert_eq!(field(&refused(|b| b.mtu = Some(500)).await), "mtu");
        assert_eq!(field(&refused(|b| b.dns = vec!["127.0.0.1".parse().unwrap()]).await), "dns[0]");
        assert_eq!(field(&refused(|b| b.cluster_id = Some(ClusterId::new())).await), "cluster_id");
        assert_eq!(refused(|b| b.name = "net".parse().unwrap()).await.code, Code::NameTaken);
        let overlap = refused(|b| b.cidr = "10.0.0.0/8".parse().unwrap()).await;
        assert!(overlap.code == Code::Conflict && overlap.message.contains("network net (10.77.0.0/24)"), "{overlap}");
        let stranger = CreateNetwork {
            body: Body { cidr: "10.77.0.0/25".parse().unwrap(), ..network("x", "10.0.0.0/8").body },
            id: NetworkId::new(),
        };
        let foreign = system.bus.call(&call_of(AccountId::new(), false), stranger).await.unwrap_err();
        assert!(foreign.code == Code::Conflict && !foreign.message.contains("net ("), "{foreign}");
    }
}

#[tokio::test]
async fn a_segment_outside_carries_one_network() {
    for system in systems().await {
        let on = |name: &str, cidr: &str, uplink: &str, vlan| {
            let mut wanted = network(name, cidr);
            (wanted.body.kind, wanted.body.uplink, wanted.body.vlan) =
                (NetworkKind::Bridged, Some(uplink.into()), vlan);
            wanted
        };
        let made = system.by_tenant(on("lan", "10.80.0.0/24", "eth1", None)).await.unwrap();
        assert_eq!((made.gateway, made.uplink.as_deref(), made.vlan), (None, Some("eth1"), None));
        assert_eq!(system.by_tenant(GetNetwork { id: made.id }).await.unwrap(), made);
        let second = system.by_tenant(on("lan2", "10.81.0.0/24", "eth1", None)).await.unwrap_err();
        assert!(second.code == Code::Conflict && second.message.contains("lan lies on the uplink"), "{second}");
        system.by_tenant(on("lan3", "10.82.0.0/24", "eth1", Some(7))).await.unwrap();
        let fourth = system.by_tenant(on("lan4", "10.83.0.0/24", "eth1", Some(7))).await.unwrap_err();
        assert!(fourth.message.contains("VLAN 7"), "{fourth}");
        system.by_tenant(on("lan5", "10.84.0.0/24", "eth2", None)).await.unwrap();
    }
}

#[tokio::test]
async fn with_two_clusters_one_must_be_named() {
    for system in systems().await {
        let body = ClusterBody {
            id: None,
            name: "c2".parse().unwrap(),
            zone_id: system.seed.zone.id,
            description: String::new(),
            cpu_overcommit: None,
            memory_overcommit: None,
        };
        let second = system.by_admin(CreateCluster { id: ClusterId::new(), body }).await.unwrap();
        let error = system.by_tenant(network("web", "10.77.0.0/24")).await.unwrap_err();
        assert!(error.fields[0].field == "cluster_id" && error.message.contains(&second.id.to_string()), "{error}");
        let mut named = network("web", "10.77.0.0/24");
        named.body.cluster_id = Some(second.id);
        // The same range as in the first cluster: clusters share nothing.
        assert_eq!(system.by_tenant(named).await.unwrap().cluster_id, second.id);
    }
}

async fn lease(system: &TestSystem) -> Result<(), Error> {
    let id = system.seed.network.id;
    let leased =
        system.context.deps.db.write(move |tx| Box::pin(async move { db::network::hold(tx, id).await.map(drop) }));
    Ok(leased.await.map(|_| ())?)
}

#[tokio::test]
async fn deleting_goes_through_the_hosts_and_is_taken_back_when_one_refuses() {
    for system in systems().await {
        let id = system.seed.network.id;
        system.agent.will_answer::<OnHost>(Err(Error::new(Code::InUse, "a domain has a card in it")));
        let accepted = system.by_tenant(DeleteNetwork { id }).await.unwrap();
        let job = system.end_of(accepted).await;
        assert_eq!((job.state, job.rolled_back), (JobState::Failed, vec!["remove_from_hosts".into(), "mark".into()]));
        assert!(job.error.unwrap().chain().contains("a domain has a card in it"));
        lease(&system).await.unwrap();
        // The lease was of no card: nobody is in the network.
        system.agent.will_answer::<OnHost>(Ok(Empty {}));
        let accepted = system.by_tenant(DeleteNetwork { id }).await.unwrap();
        assert_eq!(system.end_of(accepted).await.state, JobState::Succeeded);
        assert_eq!(system.by_tenant(GetNetwork { id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(system.by_tenant(DeleteNetwork { id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(system.agent.commands(), ["network/delete"; 2]);
        assert!(system.event_paths().await.contains(&"/network/deleted".to_string()));
    }
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_does_not_hold_a_network() {
    for mut system in systems().await {
        let unreachable = Error::new(Code::HostUnreachable, "no route");
        system.agent.will_answer::<OnHost>(Err(unreachable));
        system.tenant = with_key(&system.tenant, "k", "h");
        let accepted = system.by_tenant(DeleteNetwork { id: system.seed.network.id }).await.unwrap();
        assert_eq!(system.end_of(accepted.clone()).await.state, JobState::Succeeded);
        // The network is gone, and the same request again is still the same job.
        assert_eq!(system.by_tenant(DeleteNetwork { id: system.seed.network.id }).await.unwrap(), accepted);
    }
}
