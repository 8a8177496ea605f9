//! `kring network`: what vms are connected to.

use std::net::Ipv4Addr;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use shared::api::network::{CreateNetwork, Network, NetworkKind};
use shared::id::{ClusterId, NetworkId, ResourceId as _};
use shared::name::Name;
use uuid::Uuid;

use super::verbs::{self, body};
use crate::cli::ListArgs;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a network
    Create(Create),
    /// List networks
    #[command(after_help = "Examples:\n  kring network list")]
    List(ListArgs),
    /// Show all about a network
    #[command(after_help = "Examples:\n  kring network show lan")]
    Show {
        /// Name or id
        network: String,
    },
    /// Delete networks that no vm uses
    #[command(after_help = "Examples:\n  kring network delete lan")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
}

/// A kind on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// Guests reach the outside by the host's address
    Nat,
    /// There is no way out
    Isolated,
    /// Guests are on a segment outside, over an interface of the hosts
    Bridged,
}

/// `kring network create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kring network create lan --cidr 10.77.0.0/24
  kring network create backend --cidr 10.78.0.0/24 --kind isolated
  kring network create lan --cidr 10.77.0.0/24 --dns 9.9.9.9 --mtu 1400
  kring network create office --cidr 192.168.7.0/24 --kind bridged --uplink eth1 --vlan 7 --gateway 192.168.7.1")]
pub struct Create {
    /// Its name
    name: Name,
    /// Its addresses, /8 to /29 of a private range
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    cidr: Ipv4Net,
    /// Whether guests get out
    #[arg(long, value_enum, default_value = "nat")]
    kind: KindArg,
    /// Cluster whose hosts have it: name or id; not needed when there is one
    #[arg(long)]
    cluster: Option<String>,
    /// Address of the gateway; the first one when not given, and for a bridged network none
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// Resolver that guests' questions go to; the host's own when not given
    #[arg(long, value_name = "ADDRESS,ADDRESS", value_delimiter = ',')]
    dns: Vec<Ipv4Addr>,
    /// Largest packet, 576 to 9000
    #[arg(long)]
    mtu: Option<u16>,
    /// For a bridged network: the interface of the hosts that it lies on, such as eth1 or br0
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
    /// For a bridged network: the VLAN on the uplink, 1 to 4094
    #[arg(long)]
    vlan: Option<u16>,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create(create) => make(ctx, create).await,
        Command::List(args) => verbs::list::<Network>(ctx, &args).await,
        Command::Show { network } => verbs::show::<Network>(ctx, &network).await,
        Command::Delete { networks } => verbs::delete_direct(ctx, Noun::NETWORK, &networks).await,
    }
}

async fn make(ctx: &Ctx, args: Create) -> Result<()> {
    let cluster_id = match &args.cluster {
        Some(given) => Some(ClusterId::from_uuid(resolve::id(&ctx.client, Noun::CLUSTER, given).await?)),
        None => None,
    };
    let id = NetworkId::new();
    let name = args.name.to_string();
    let request = CreateNetwork {
        id: Some(id),
        name: args.name,
        kind: match args.kind {
            KindArg::Nat => NetworkKind::Nat,
            KindArg::Isolated => NetworkKind::Isolated,
            KindArg::Bridged => NetworkKind::Bridged,
        },
        cidr: args.cidr,
        cluster_id,
        gateway: args.gateway,
        dns: args.dns,
        mtu: args.mtu,
        uplink: args.uplink,
        vlan: args.vlan,
    };
    verbs::create_direct::<Network>(ctx, &name, id.uuid(), body(&request)?).await
}

impl Resource for Network {
    const NOUN: Noun = Noun::NETWORK;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |network, _| Cell::new(&network.name)),
        Column::new("kind", |network, _| Cell::new(format!("{:?}", network.kind).to_lowercase())),
        Column::new("cidr", |network, _| Cell::new(network.cidr)),
        Column::new("gateway", |network, _| Cell::new(network.gateway.map(|ip| ip.to_string()).unwrap_or_default())),
        Column::wide("service", |network, _| Cell::new(network.service_address)),
        Column::wide("dns", |network, _| {
            Cell::new(network.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }),
        Column::wide("uplink", |network, _| {
            let vlan = network.vlan.map(|vlan| format!(".{vlan}")).unwrap_or_default();
            Cell::new(network.uplink.as_ref().map(|uplink| format!("{uplink}{vlan}")).unwrap_or_default())
        }),
        Column::wide_number("mtu", |network, _| Cell::new(network.mtu)),
        Column::new("cluster", |network, view| view.name(network.cluster_id)),
        Column::new("age", |network, view| view.age(network.created_at)),
        Column::new("id", |network, view| view.id(network.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        vec![(Noun::CLUSTER, self.cluster_id.uuid())]
    }
}
