//! The description of the API, made from the code: OpenAPI 3.1.
//!
//! `controller/openapi.json` is the checked-in contract; a test compares it. After a wanted change:
//! `UPDATE_CONTRACTS=1 cargo test -p kring-controller contracts`.

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ArrayItems, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder, Tag};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::error::PROBLEM_JSON;
use super::router;
use shared::error::Problem;

const ABOUT: &str = "\
Every request needs a token: `Authorization: Bearer TOKEN`.

Reads answer 200. What is quick to do is done at once (200, 201 with `Location`, 204). Other work is \
accepted: 202 with `Location: /v1/jobs/{id}`; with `Prefer: wait=30` the answer is 200 with the finished \
job when it ends in time. What was accepted is never lost.

`kring login` keeps a token for the command line, and `kring token create` makes one for a program. The \
certificate is of the controller's own authority: `ca.pem` in its folder `pki`, which `curl` takes with \
`--cacert`.

Ids are UUIDs and may be chosen by the client. With an `Idempotency-Key`, a request that is sent again \
is answered as the first time and not done twice.

Lists take `q` (filter), `sort`, `limit`, `cursor`, `fields` and `count`; see `GET /v1/vms`. \
Errors are `application/problem+json` (RFC 9457) with a stable `code`: see [the list](/docs/errors).";

const TAGS: [(&str, &str); 16] = [
    ("zones", "Failure domains."),
    ("clusters", "Hosts that share networks and storage."),
    ("hosts", "KVM machines that run an agent."),
    ("instance_types", "Named sizes of VM."),
    ("images", "What VMs are made from."),
    ("storages", "Places where volumes are kept."),
    ("volumes", "Virtual disks."),
    ("networks", "What VMs are connected to."),
    ("vms", "Virtual machines."),
    ("jobs", "Accepted work."),
    ("events", "What happened."),
    ("settings", "Values that change how Kring behaves, at run time."),
    ("services", "What runs in the controller."),
    ("controllers", "Who shares the work, and who owns what."),
    ("accounts", "Owners of resources."),
    ("tokens", "What programs and people authenticate with."),
];

/// The description, as it is served.
#[must_use]
pub fn json() -> String {
    let (_, mut api) = OpenApiRouter::<std::sync::Arc<super::Api>>::new().nest("/v1", router::v1()).split_for_parts();
    decorate(&mut api);
    // Serialising a description of ours cannot fail; an empty one would fail the contract's test.
    let text = api.to_pretty_json().map(|text| text + "\n").unwrap_or_default();
    // `Links` is a type alias, of which the generator sees only what it stands for.
    text.replace("schemas/BTreeMap\"", "schemas/Links\"").replace("\"BTreeMap\": {", "\"Links\": {")
}

fn decorate(api: &mut OpenApi) {
    api.info.title = "Kring".to_string();
    api.info.version = env!("CARGO_PKG_VERSION").to_string();
    api.info.description = Some(ABOUT.to_string());
    api.info.license = None;
    api.info.contact = None;
    api.tags = Some(TAGS.iter().map(|(name, about)| tag(name, about)).collect());
    let components = api.components.get_or_insert_default();
    let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    for (name, schema) in schemas {
        components.schemas.entry(name).or_insert(schema);
    }
    for (name, schema) in &mut components.schemas {
        if let Some(item) = name.strip_prefix("Page_") {
            refer_to_item(schema, item);
        }
    }
    let bearer =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A token, from POST /v1/tokens.")).build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    api.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    api.paths.paths.values_mut().for_each(decorate_path);
}

/// The generator writes the items of a page out; they have a name.
fn refer_to_item(page: &mut RefOr<Schema>, item: &str) {
    if let RefOr::T(Schema::Object(page)) = page
        && let Some(RefOr::T(Schema::Array(items))) = page.properties.get_mut("items")
    {
        items.items = ArrayItems::RefOrSchema(Box::new(RefOr::Ref(Ref::from_schema_name(item))));
    }
}

fn tag(name: &str, about: &str) -> Tag {
    let mut tag = Tag::new(name);
    tag.description = Some(about.to_string());
    tag
}

fn decorate_path(item: &mut PathItem) {
    if let Some(get) = &mut item.get {
        refusals(get);
    }
    for change in [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten() {
        let accepts = change.responses.responses.contains_key("202");
        let parameters = change.parameters.get_or_insert_default();
        let key = "Repeating the request with the same key does it once.";
        parameters.push(parameter("Idempotency-Key", ParameterIn::Header, Type::String, key));
        let dry = "Say what would happen instead of doing it.";
        parameters.push(parameter("dry_run", ParameterIn::Query, Type::Boolean, dry));
        if accepts {
            let wait = "`wait=N`: answer the finished job when it ends within N seconds.";
            parameters.push(parameter("Prefer", ParameterIn::Header, Type::String, wait));
        }
        refusals(change);
    }
}

fn parameter(name: &str, place: ParameterIn, kind: Type, about: &str) -> RefOr<Parameter> {
    let schema = Schema::Object(ObjectBuilder::new().schema_type(kind).build());
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(about))
        .schema(Some(RefOr::T(schema)))
        .build();
    parameter.into()
}

fn refusals(operation: &mut Operation) {
    for (status, answer) in &mut operation.responses.responses {
        if let RefOr::T(Response { description, .. }) = answer
            && description.is_empty()
        {
            let text = match status.as_str() {
                "201" => "Made; `Location` says where it is.",
                "202" => "Accepted; `Location` is the job.",
                "204" => "Done.",
                _ => "Success.",
            };
            *description = text.to_string();
        }
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let refusal = ResponseBuilder::new().description("Refused or failed.").content(PROBLEM_JSON, problem).build();
    operation.responses.responses.insert("default".to_string(), RefOr::T(refusal));
}
