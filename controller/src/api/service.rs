//! `/v1/services`: what runs in this controller, with its counters.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use shared::Error;
use shared::api::page::{ListParams, Page};
use shared::api::service::Service;

use super::Api;
use super::extract::List;
use super::reply::{self, Answer};
use crate::cx::Cx;

/// Lists the services of the controller that answers.
#[utoipa::path(get, path = "/services", tag = "services", params(ListParams), responses((status = 200, body = Page<Service>)))]
pub async fn list_services(State(api): State<Arc<Api>>, _cx: Cx, List(params): List) -> Answer {
    let service = |(name, service): (&str, &crate::bus::Service)| {
        let figures = service.stats.figures();
        Service {
            name: name.to_string(),
            started: !service.disabled,
            disabled: service.disabled,
            in_flight: figures.in_flight,
            queued: figures.queued,
            handled: figures.handled,
            failed: figures.failed,
            messages: service.messages.iter().map(|name| (*name).to_string()).collect(),
        }
    };
    whole(api.bus.services().map(service).collect(), &params)
}

/// A short list, answered whole, whatever the limit: it has one order and no filter.
pub(super) fn whole<T: Serialize + utoipa::PartialSchema>(items: Vec<T>, params: &ListParams) -> Answer {
    for (name, given) in [("q", &params.q), ("sort", &params.sort), ("cursor", &params.cursor)] {
        if given.is_some() {
            return Err(Error::invalid(name, "this list is short and always answered whole, in one order").into());
        }
    }
    let count = params.count.unwrap_or(false).then_some(items.len() as u64);
    reply::page(&Page { items, next_cursor: None, count }, params.fields.as_deref())
}
