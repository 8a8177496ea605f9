//! Messages of the instance type service.

use shared::api::instance_type::{CreateInstanceType as Body, InstanceType};
use shared::id::InstanceTypeId;

use super::{changes, creates, reads};

reads!(
    "instance_type",
    "instance_type.GetInstanceType" => GetInstanceType(InstanceTypeId),
    "instance_type.ListInstanceTypes" => ListInstanceTypes, InstanceType, ReadInfrastructure
);
creates!("instance_type.CreateInstanceType" to "instance_type" => InstanceType, CreateInstanceType(InstanceTypeId, Body), Operate);
changes!(
    /// Removes an instance type; VMs keep the sizes that they got from it.
    "instance_type.DeleteInstanceType" to "instance_type" => (), DeleteInstanceType(InstanceTypeId), Operate
);
