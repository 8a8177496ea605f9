//! What is counted elsewhere, as it is when `/metrics` is asked for.

use super::Api;

/// Brings the figures of bus, hosts, database and tracing up to date.
pub(super) fn refresh(api: &Api) {
    bus(api);
    hosts(api);
    let (metrics, db) = (&api.metrics, api.db.write_figures());
    metrics.total("kring_db_writes_total", &[], db.writes);
    metrics.total("kring_db_commits_total", &[], db.commits);
    let committing = u64::try_from(db.committing.as_micros()).unwrap_or(u64::MAX);
    metrics.total("kring_db_commit_microseconds_total", &[], committing);
    if let Some(spans) = trace::figures() {
        metrics.total("kring_trace_spans_sent_total", &[], spans.sent);
        metrics.total("kring_trace_spans_dropped_total", &[], spans.dropped);
    }
}

fn bus(api: &Api) {
    let (metrics, bus) = (&api.metrics, &api.bus);
    for (name, service) in bus.services() {
        let (figures, labels) = (service.stats.figures(), [("service", name)]);
        metrics.gauge("kring_bus_queued", &labels, figures.queued);
        metrics.gauge("kring_bus_in_flight", &labels, figures.in_flight);
        metrics.total("kring_bus_handled_total", &labels, figures.handled);
        metrics.total("kring_bus_failed_total", &labels, figures.failed);
    }
    let (resources, waiting) = bus.queue_sizes();
    metrics.gauge("kring_bus_busy_resources", &[], resources as u64);
    metrics.gauge("kring_bus_waiting_messages", &[], waiting as u64);
    let broker = bus.transport().health();
    if broker.broker {
        metrics.gauge("kring_bus_broker_connected", &[], u64::from(broker.connected));
        metrics.gauge("kring_bus_broker_blocked", &[], u64::from(broker.blocked));
        metrics.total("kring_bus_broker_reconnects_total", &[], broker.reconnects);
    }
}

fn hosts(api: &Api) {
    let (metrics, hosts) = (&api.metrics, api.agents.figures());
    metrics.gauge("kring_host_breakers_open", &[], hosts.open);
    metrics.gauge("kring_host_commands", &[], hosts.commands);
    metrics.total("kring_host_breakers_opened_total", &[], hosts.opened);
    metrics.total("kring_host_commands_refused_total", &[], hosts.refused);
    metrics.total("kring_host_requests_total", &[], hosts.requests);
    metrics.total("kring_host_connections_total", &[], hosts.connections);
}
