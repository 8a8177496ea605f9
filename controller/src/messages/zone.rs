//! Messages of the zone service.

use shared::api::zone::{CreateZone as Body, Zone};
use shared::id::ZoneId;

use super::{changes, creates, reads};

reads!("zone", "zone.GetZone" => GetZone(ZoneId), "zone.ListZones" => ListZones, Zone, ReadInfrastructure);
creates!("zone.CreateZone" to "zone" => Zone, CreateZone(ZoneId, Body), Operate);
changes!(
    /// Removes an empty zone.
    "zone.DeleteZone" to "zone" => (), DeleteZone(ZoneId), Operate
);
