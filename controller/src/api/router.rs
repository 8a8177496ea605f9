//! The whole API on one page.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{
    Api, account, agent, authn, cluster, console, controller, docs, error, event, front, host, image, image_content,
    instance_type, job, network, probe, service, setting, storage, token, vm, volume, zone,
};

/// `/v1`: for users, with a token.
pub(super) fn v1() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(zone::list_zones, zone::create_zone))
        .routes(routes!(zone::get_zone, zone::delete_zone))
        .routes(routes!(cluster::list_clusters, cluster::create_cluster))
        .routes(routes!(cluster::get_cluster, cluster::delete_cluster))
        .routes(routes!(host::list_hosts))
        .routes(routes!(host::get_host, host::update_host, host::delete_host))
        .routes(routes!(host::maintain_host))
        .routes(routes!(host::reconnect_host))
        .routes(routes!(host::create_join_token))
        .routes(routes!(instance_type::list_instance_types, instance_type::create_instance_type))
        .routes(routes!(instance_type::get_instance_type, instance_type::delete_instance_type))
        .routes(routes!(storage::list_storages, storage::create_storage))
        .routes(routes!(storage::get_storage, storage::delete_storage))
        .routes(routes!(image::list_images, image::create_image))
        .routes(routes!(image::get_image, image::delete_image))
        .routes(routes!(image_content::put_image_content))
        .routes(routes!(network::list_networks, network::create_network))
        .routes(routes!(network::get_network, network::delete_network))
        .routes(routes!(volume::list_volumes, volume::create_volume))
        .routes(routes!(volume::get_volume, volume::delete_volume))
        .routes(routes!(volume::attach_volume))
        .routes(routes!(volume::detach_volume))
        .routes(routes!(vm::list_vms, vm::create_vm))
        .routes(routes!(vm::get_vm, vm::update_vm, vm::delete_vm))
        .routes(routes!(vm::start_vm))
        .routes(routes!(vm::stop_vm))
        .routes(routes!(vm::reboot_vm))
        .routes(routes!(vm::pause_vm))
        .routes(routes!(vm::resume_vm))
        .routes(routes!(vm::migrate_vm))
        .routes(routes!(vm::recover_vm))
        .routes(routes!(vm::expunge_vm))
        .routes(routes!(console::open_console))
        .routes(routes!(console::get_console_log))
        .routes(routes!(job::list_jobs))
        .routes(routes!(job::get_job))
        .routes(routes!(job::cancel_job))
        .routes(routes!(event::list_events))
        .routes(routes!(setting::list_settings))
        .routes(routes!(setting::get_setting, setting::update_setting))
        .routes(routes!(service::list_services))
        .routes(routes!(controller::list_controllers))
        .routes(routes!(controller::get_controller))
        .routes(routes!(controller::drain_controller))
        .routes(routes!(controller::activate_controller))
        .routes(routes!(controller::get_ownership))
        .routes(routes!(account::list_accounts, account::create_account))
        .routes(routes!(account::get_account, account::delete_account))
        .routes(routes!(token::list_tokens, token::create_token))
        .routes(routes!(token::get_token, token::delete_token))
}

/// `/agent/v1`: for agents, with the certificate of a host.
fn agent_v1() -> Router<Arc<Api>> {
    Router::new()
        .route("/agent/v1/join", post(agent::join))
        .route("/agent/v1/renew", post(agent::renew))
        .route("/agent/v1/events", post(agent::events))
        .route("/agent/v1/callbacks/{task}", post(agent::callback))
        .route("/agent/v1/images/{id}/content", get(agent::image))
}

/// What needs neither.
fn open() -> Router<Arc<Api>> {
    Router::new()
        .route("/healthz", get(probe::healthz))
        .route("/readyz", get(probe::readyz))
        .route("/metrics", get(probe::metrics))
        .route("/v1/openapi.json", get(docs::openapi))
        .route("/v1/console/{ticket}", get(console::attach_console))
        .route("/docs", get(docs::index))
        .route("/docs/errors", get(docs::errors))
        .route("/docs/docs.js", get(docs::script))
        .route("/docs/docs.css", get(docs::style))
}

/// All of it, for a listener.
pub fn router(api: Arc<Api>) -> Router {
    let (v1, _) = OpenApiRouter::new().nest("/v1", v1()).split_for_parts();
    v1.route_layer(from_fn_with_state(Arc::clone(&api), authn::authenticate))
        .merge(agent_v1())
        .merge(open())
        .method_not_allowed_fallback(error::no_such_method)
        .fallback(error::no_such_path)
        .layer(from_fn_with_state(Arc::clone(&api), front::front))
        .with_state(api)
}
