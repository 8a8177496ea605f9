//! Messages of the cluster service.

use shared::api::cluster::{Cluster, CreateCluster as Body};
use shared::id::ClusterId;

use super::{changes, creates, reads};

reads!("cluster", "cluster.GetCluster" => GetCluster(ClusterId), "cluster.ListClusters" => ListClusters, Cluster, ReadInfrastructure);
creates!("cluster.CreateCluster" to "cluster" => Cluster, CreateCluster(ClusterId, Body), Operate);
changes!(
    /// Removes an empty cluster.
    "cluster.DeleteCluster" to "cluster" => (), DeleteCluster(ClusterId), Operate
);
