//! What handlers take from a request: ids, bodies, list parameters. Every refusal names the field.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::header;
use http::request::Parts;
use serde::de::DeserializeOwned;
use shared::api::page::ListParams;
use shared::{Code, Error};

use super::Api;
use super::context::{pairs, read_body, unknown_parameter};
use super::error::Failure;
use crate::cx::Cx;

impl FromRequestParts<Arc<Api>> for Cx {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        let cx = parts.extensions.get::<Self>().cloned();
        cx.ok_or_else(|| Error::internal("a route without authentication asks for a caller").into())
    }
}

/// The `{id}` (or whatever single parameter) of the path.
pub struct Id<T>(pub T);

impl<T: FromStr<Err: Display> + Send> FromRequestParts<Arc<Api>> for Id<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let Path(text): Path<String> = Path::from_request_parts(parts, api)
            .await
            .map_err(|e: PathRejection| Error::invalid("id", e.body_text()))?;
        text.parse().map(Self).map_err(|e: T::Err| Error::invalid("id", e.to_string()).into())
    }
}

/// A JSON body.
pub struct Json<T>(pub T);

/// A JSON body that may be left out.
pub struct JsonOrDefault<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Failure> {
        Ok(Self(parse(&body(request, api).await?.0)?))
    }
}

impl<T: DeserializeOwned + Default> FromRequest<Arc<Api>> for JsonOrDefault<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Failure> {
        let (bytes, _) = body(request, api).await?;
        Ok(Self(if bytes.is_empty() { T::default() } else { parse(&bytes)? }))
    }
}

/// The body, of JSON by its header (an empty body needs none).
async fn body(request: Request, api: &Api) -> Result<(Bytes, ()), Error> {
    let (parts, body) = request.into_parts();
    let deadline = match parts.extensions.get::<Cx>() {
        Some(cx) => cx.deadline,
        None => tokio::time::Instant::now() + api.config.api.timeout(),
    };
    let media_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = media_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let is_json = essence.as_deref().is_some_and(|text| text == "application/json" || text.ends_with("+json"));
    let bytes = read_body(body, &parts.headers, api.config.api.max_body_bytes(), deadline).await?;
    if !is_json && !bytes.is_empty() {
        return Err(Error::new(
            Code::UnsupportedMediaType,
            "the body must be JSON: send Content-Type: application/json",
        ));
    }
    Ok((bytes, ()))
}

/// Longest piece of a caller's own text that an error repeats.
const MAX_ECHO: usize = 300;

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.is_empty() {
        return Err(Error::new(Code::InvalidRequest, "a JSON body is needed"));
    }
    // The parser would also take the values of a structure as a list.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'[' | b'"' | b'0'..=b'9')) {
        return Err(Error::invalid("body", "must be a JSON object, {…}"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path: String = error.path().to_string().chars().take(MAX_ECHO).collect();
        let inner = error.into_inner();
        let text: String = inner.to_string().chars().take(2 * MAX_ECHO).collect();
        if inner.is_data() {
            // The place in the text says less than the field.
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_string();
            return Error::invalid(field_of(&path, &text), text);
        }
        Error::new(Code::InvalidRequest, format!("the body is not JSON: {text}"))
    })?;
    reader.end().map_err(|e| Error::new(Code::InvalidRequest, format!("the body is not JSON: {e}")))?;
    Ok(value)
}

/// The field that an error is about: the path, and the name that the parser found missing or twice there.
fn field_of(path: &str, text: &str) -> String {
    let name =
        ["missing field `", "duplicate field `"].iter().find_map(|start| text.strip_prefix(start)?.strip_suffix('`'));
    match (path, name) {
        (".", None) => "body".to_string(),
        (".", Some(name)) => name.to_string(),
        (path, None) => path.to_string(),
        (path, Some(name)) => format!("{path}.{name}"),
    }
}

/// The query parameters of a list.
pub struct List(pub ListParams);

impl FromRequestParts<Arc<Api>> for List {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        Ok(Self(list_params(pairs(&parts.uri)?)?))
    }
}

/// List parameters from query parameters.
pub(super) fn list_params(pairs: Vec<(String, String)>) -> Result<ListParams, Error> {
    let mut params = ListParams::default();
    for (key, value) in pairs {
        match key.as_str() {
            "q" => set(&mut params.q, &key, value)?,
            "sort" => set(&mut params.sort, &key, value)?,
            "cursor" => set(&mut params.cursor, &key, value)?,
            "fields" => {
                fields(&value)?;
                set(&mut params.fields, &key, value)?;
            }
            "limit" => {
                let limit = value.parse().map_err(|_| Error::invalid("limit", "must be a whole number, 1 to 1000"))?;
                set(&mut params.limit, &key, limit)?;
            }
            "count" => match value.as_str() {
                "true" => set(&mut params.count, &key, true)?,
                "false" => set(&mut params.count, &key, false)?,
                _ => return Err(Error::invalid("count", "must be true or false")),
            },
            _ => return Err(unknown_parameter(&key, "q, sort, limit, cursor, fields or count")),
        }
    }
    Ok(params)
}

fn set<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), Error> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::invalid(key, "is given twice")),
    }
}

/// The names in `fields=`.
pub(super) fn fields(text: &str) -> Result<Vec<&str>, Error> {
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
    };
    if names.len() <= 50 && names.iter().all(is_name) {
        Ok(names)
    } else {
        Err(Error::invalid("fields", "must be names of fields with commas between them, such as id,name,state"))
    }
}

/// `Prefer: wait=N`: how long the caller would like to wait for the work itself.
pub struct Wait(pub Option<Duration>);

impl FromRequestParts<Arc<Api>> for Wait {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let max = api.config.api.max_timeout_s;
        for header in parts.headers.get_all("prefer") {
            for preference in header.to_str().unwrap_or_default().split([',', ';']) {
                let Some((name, value)) = preference.split_once('=') else { continue };
                if !name.trim().eq_ignore_ascii_case("wait") {
                    continue;
                }
                let seconds: Option<u64> = value.trim().trim_matches('"').parse().ok();
                // A preference that cannot be met is not an error (RFC 7240), a malformed one is.
                let seconds =
                    seconds.ok_or_else(|| Error::invalid("Prefer", "wait must be a whole number of seconds"))?;
                return Ok(Self(Some(Duration::from_secs(seconds.min(max as u64))).filter(|wait| !wait.is_zero())));
            }
        }
        Ok(Self(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::api::vm::CreateVm;

    fn refused(body: &str) -> (String, String) {
        let error = parse::<CreateVm>(body.as_bytes()).unwrap_err();
        let field = error.fields.first().map(|f| f.field.clone()).unwrap_or_default();
        (field, error.message)
    }

    #[test]
    fn an_error_in_a_body_names_the_field() {
        let id = "01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11";
        let all: Vec<String> = [
            String::new(),
            "{".into(),
            "[]".into(),
            "{}".into(),
            "{\"name\": 5}".into(),
            "{\"name\": \"a b\"}".into(),
            format!("{{\"name\": \"a\", \"image_id\": \"{id}\", \"nics\": [{{\"network_id\": \"x\"}}]}}"),
            format!("{{\"name\": \"a\", \"image_id\": \"{id}\", \"nics\": [{{\"network_id\": \"{id}\", \"ip\": \"1.2.3\"}}]}}"),
            format!("{{\"name\": \"a\", \"image_id\": \"{id}\", \"ram\": 5}}"),
            format!("{{\"name\": \"a\", \"image_id\": \"{id}\", \"vcpus\": -1}}"),
            format!("{{\"name\": \"a\", \"image_id\": \"{id}\"}} x"),
        ]
        .iter()
        .map(|body| format!("{body}\n  → {:?}", refused(body)))
        .collect();
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn list_parameters_are_checked() {
        let pair = |k: &str, v: &str| vec![(k.to_string(), v.to_string())];
        assert_eq!(list_params(pair("limit", "5")).unwrap().limit, Some(5));
        for (key, value) in [("limit", "x"), ("count", "1"), ("fields", "a b"), ("fields", ""), ("foo", "1")] {
            let error = list_params(pair(key, value)).unwrap_err();
            assert_eq!(error.fields[0].field, key);
        }
        assert!(list_params([pair("q", "a"), pair("q", "b")].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
            let _ = parse::<CreateVm>(&bytes);
            let _ = parse::<shared::api::image::CreateImage>(text.as_bytes());
        }
    }
}
