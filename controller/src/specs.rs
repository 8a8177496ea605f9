//! What hosts are told of the resources that several services send them: one way from a row to its
//! form on the wire.

use shared::api::image::{Image, ImageSource};
use shared::api::network::Network;
use shared::api::storage::Storage;
use shared::units::Bytes;
use shared::wire::host::StorageSpec;
use shared::wire::image::{ImageOrigin, ImageSpec};
use shared::wire::network::NetworkSpec;

use crate::settings::Settings;

/// An image, with what its content must be as far as that is known.
#[must_use]
pub fn image(image: &Image, settings: &Settings) -> ImageSpec {
    ImageSpec {
        image_id: image.id,
        origin: match &image.source {
            ImageSource::Url { url } => ImageOrigin::Url { url: url.clone() },
            ImageSource::Upload => ImageOrigin::Controller,
        },
        sha256: image.sha256.clone(),
        format: image.format,
        max_size: Bytes(settings.integer("image.max_size")),
        max_virtual_size: Bytes(settings.integer("image.max_virtual_size")),
    }
}

/// A network.
#[must_use]
pub fn network(network: &Network) -> NetworkSpec {
    NetworkSpec {
        network_id: network.id,
        kind: network.kind,
        cidr: network.cidr,
        gateway: network.gateway,
        service_address: network.service_address,
        dns: network.dns.clone(),
        mtu: network.mtu,
        uplink: network.uplink.clone(),
        vlan: network.vlan,
    }
}

/// A storage.
#[must_use]
pub fn storage(storage: &Storage) -> StorageSpec {
    StorageSpec { storage_id: storage.id, path: storage.path.clone(), kind: storage.kind }
}
