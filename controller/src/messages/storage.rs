//! Messages of the storage service.

use shared::api::storage::{CreateStorage as Body, Storage};
use shared::id::StorageId;

use super::{changes, creates, reads};

reads!("storage", "storage.GetStorage" => GetStorage(StorageId), "storage.ListStorages" => ListStorages, Storage, ReadInfrastructure);
creates!("storage.CreateStorage" to "storage" => Storage, CreateStorage(StorageId, Body), Operate);
changes!(
    /// Removes a storage that keeps no volumes.
    "storage.DeleteStorage" to "storage" => (), DeleteStorage(StorageId), Operate
);
