//! `kring vm create`: from what the user writes to the request.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use shared::api::vm::{CreateNic, CreateVm, MAX_USER_DATA};
use shared::id::{HostId, ImageId, InstanceTypeId, NetworkId, ResourceId as _, StorageId, VmId};
use shared::name::Name;
use shared::units::Bytes;

use super::verbs::{Change, body, change};
use crate::cli::ChangeArgs;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::input;
use crate::output::note;
use crate::resolve::{self, Noun};

/// The arguments.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kring vm create web --image debian --vcpus 2 --memory 2GiB --network lan \\
      --ssh-key ~/.ssh/id_ed25519.pub
  kring vm create web --image debian --instance-type small --network lan,ip=10.77.0.20 \\
      --network backend --root-size 10GiB --user-data cloud-init.yaml
  kring vm create web --image debian --vcpus 64 --memory 1TiB --dry-run   (where would it go?)")]
pub struct Create {
    /// Its name
    pub name: Name,
    /// Image that its root volume is made from: name or id
    #[arg(long)]
    pub image: String,
    /// Sizes by name
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["vcpus", "memory"])]
    pub instance_type: Option<String>,
    /// Virtual processors
    #[arg(long, required_unless_present = "instance_type")]
    pub vcpus: Option<u32>,
    /// Memory, such as 512MiB
    #[arg(long, value_name = "SIZE", required_unless_present = "instance_type")]
    pub memory: Option<Bytes>,
    /// Size of the root volume, such as 10GiB; as large as the image when not given
    #[arg(long, value_name = "SIZE")]
    pub root_size: Option<Bytes>,
    /// Network to connect to, with a certain address if you like; can be given several times
    #[arg(long = "network", value_name = "NETWORK[,ip=ADDRESS]")]
    pub networks: Vec<NicArg>,
    /// Public ssh key, or a file with some; can be given several times
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    pub ssh_keys: Vec<String>,
    /// File with cloud-init user data; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Host name inside; made from the name when not given
    #[arg(long)]
    pub hostname: Option<String>,
    /// Put it on this host: name or id
    #[arg(long)]
    pub host: Option<String>,
    /// Storage of its root volume: name or id; the one with the most left when not given
    #[arg(long)]
    pub storage: Option<String>,
    /// Make it, but do not start it
    #[arg(long)]
    pub no_start: bool,
    /// Do not start it again by itself when its host has restarted
    #[arg(long)]
    pub no_auto_start: bool,
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// A network, and perhaps an address in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicArg {
    /// Name or id of the network.
    pub network: String,
    /// The address.
    pub ip: Option<Ipv4Addr>,
}

impl FromStr for NicArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let network = parts.next().unwrap_or_default().to_string();
        if network.is_empty() {
            return Err("give NETWORK or NETWORK,ip=ADDRESS".into());
        }
        let mut nic = Self { network, ip: None };
        for part in parts {
            let Some(("ip", address)) = part.split_once('=') else {
                return Err(format!("\"{part}\" is not known here: give NETWORK or NETWORK,ip=ADDRESS"));
            };
            nic.ip = Some(address.parse().map_err(|_| format!("\"{address}\" is not an IPv4 address"))?);
        }
        Ok(nic)
    }
}

/// Makes a vm.
pub async fn run(ctx: &Ctx, args: Create) -> Result<()> {
    // What is on this machine is checked before anything is asked of the server.
    let ssh_keys = input::ssh_keys(&args.ssh_keys)?;
    let user_data = args.user_data.as_deref().map(|path| input::file_text(path, "user data")).transpose()?;
    if let Some(data) = &user_data
        && data.len() > MAX_USER_DATA
    {
        return Err(CliError::Usage(format!(
            "the user data is {} long; at most {} are allowed",
            Bytes(data.len() as u64),
            Bytes(MAX_USER_DATA as u64)
        )));
    }
    let client = &ctx.client;
    let image = resolve::id(client, Noun::IMAGE, &args.image).await?;
    let instance_type = match &args.instance_type {
        Some(given) => Some(InstanceTypeId::from_uuid(resolve::id(client, Noun::INSTANCE_TYPE, given).await?)),
        None => None,
    };
    let host = match &args.host {
        Some(given) => Some(HostId::from_uuid(resolve::id(client, Noun::HOST, given).await?)),
        None => None,
    };
    let storage = match &args.storage {
        Some(given) => Some(StorageId::from_uuid(resolve::id(client, Noun::STORAGE, given).await?)),
        None => None,
    };
    let mut nics = Vec::new();
    for nic in &args.networks {
        let network = resolve::id(client, Noun::NETWORK, &nic.network).await?;
        nics.push(CreateNic { network_id: NetworkId::from_uuid(network), ip: nic.ip });
    }
    if nics.is_empty() && ctx.for_people() {
        note("No --network was given: the vm will have no network card.");
    }
    let id = VmId::new();
    let request = CreateVm {
        id: Some(id),
        name: args.name.clone(),
        image_id: ImageId::from_uuid(image),
        instance_type_id: instance_type,
        vcpus: args.vcpus,
        memory: args.memory,
        root_size: args.root_size,
        nics,
        hostname: args.hostname,
        ssh_keys,
        user_data,
        host_id: host,
        storage_id: storage,
        start: !args.no_start,
        auto_start: !args.no_auto_start,
    };
    let created = Change::create(Noun::VM, args.name.as_str(), id.uuid(), body(&request)?);
    change(ctx, created, &args.change).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_given_with_or_without_an_address() {
        assert_eq!("lan".parse::<NicArg>().unwrap(), NicArg { network: "lan".into(), ip: None });
        let nic = "lan,ip=10.0.0.9".parse::<NicArg>().unwrap();
        assert_eq!(nic.ip, Some(Ipv4Addr::new(10, 0, 0, 9)));
        for bad in ["", ",ip=10.0.0.9", "lan,ip=10.0.0", "lan,mac=1"] {
            assert!(bad.parse::<NicArg>().is_err(), "{bad}");
        }
    }
}
