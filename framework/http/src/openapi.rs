//! The OpenAPI 3.1 description of a gateway's routes.

use serde_json::{Map, Value, json};
use whizbang_core::message::Shape;

use crate::route::{RouteCard, RouteKind};
use crate::schema::{is_unit, json_schema, object};

/// The statuses of every route that are problems.
const PROBLEMS: [(&str, &str); 4] = [
    ("400", "The request is invalid, and nothing was sent"),
    ("500", "The message failed in every attempt"),
    ("503", "Nothing was handled; repeat the request later"),
    ("504", "The outcome is unknown; repeat the request with the same Idempotency-Key"),
];

/// The further statuses of a command.
const COMMAND_PROBLEMS: [(&str, &str); 4] = [
    ("409", "The Idempotency-Key was used with another request"),
    ("413", "The body is too large"),
    ("415", "The body is not JSON"),
    ("422", "The domain rejected the command; `code` says why"),
];

/// Returns the OpenAPI document of the routes. Types follow from the shapes of the messages.
pub(crate) fn describe<'a>(title: &str, version: &str, routes: impl Iterator<Item = &'a RouteCard>) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let operations = paths.entry(&route.path).or_insert_with(|| json!({}));
        if let Some(operations) = operations.as_object_mut() {
            operations.insert(route.method.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": title, "version": version },
        "paths": paths,
        "components": { "schemas": { "Problem": problem() } },
    })
}

/// Returns the operation of one route: parameters, body and responses.
fn operation(route: &RouteCard) -> Value {
    let fields = route.known_fields();
    let in_path: Vec<&str> = route.parameters().collect();
    let is_in_path = |names: &[String]| names.iter().any(|name| in_path.contains(&name.as_str()));
    let mut parameters: Vec<Value> = Vec::new();
    for name in &in_path {
        let schema = fields.find(name).map_or(json!(true), |field| json_schema(&field.shape));
        parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
    }
    let others = || fields.iter().filter(|field| !is_in_path(&field.names));
    let mut operation = json!({
        "operationId": format!("{}.{}", route.domain, route.name), "tags": [route.domain],
    });
    let Some(members) = operation.as_object_mut() else { return operation };
    match route.kind {
        RouteKind::Query => {
            for field in others() {
                let required = !field.optional && !matches!(field.shape, Shape::Option(_) | Shape::List(_));
                let schema = json_schema(&field.shape);
                parameters.push(
                    json!({ "name": field.names.first(), "in": "query", "required": required, "schema": schema }),
                );
            }
        }
        RouteKind::Command => {
            for (name, text) in [
                ("Idempotency-Key", "The command is handled once for each key, and a repetition gets the first reply"),
                ("Prefer", "`wait=5` limits the wait in seconds; `respond-async` asks for a receipt"),
            ] {
                let schema = json!({ "type": "string" });
                parameters.push(json!({ "name": name, "in": "header", "description": text, "schema": schema }));
            }
            if others().next().is_some() {
                let body = json!({ "application/json": { "schema": object(others()) } });
                members.insert("requestBody".to_owned(), json!({ "required": true, "content": body }));
            }
        }
    }
    members.insert("parameters".to_owned(), json!(parameters));
    members.insert("responses".to_owned(), responses(route));
    operation
}

/// Returns the responses of one route, with the errors that it can have.
fn responses(route: &RouteCard) -> Value {
    let mut found = Map::new();
    let reply = if is_unit(&route.reply) {
        ("204", json!({ "description": "The command was handled" }))
    } else {
        // A query that finds nothing responds 404.
        let shape = match (&*route.reply, route.kind) {
            (Shape::Option(inner), RouteKind::Query) => inner,
            (shape, _) => shape,
        };
        let content = json!({ "application/json": { "schema": json_schema(shape) } });
        ("200", json!({ "description": "The reply", "content": content }))
    };
    found.insert(reply.0.to_owned(), reply.1);
    if matches!((&*route.reply, route.kind), (Shape::Option(_), RouteKind::Query)) {
        found.insert("404".to_owned(), problem_response("The query found nothing"));
    }
    if route.kind == RouteKind::Command {
        let receipt = json!({ "type": "object", "properties": { "id": { "type": "string" } }, "required": ["id"] });
        let content = json!({ "application/json": { "schema": receipt } });
        let accepted = json!({ "description": "The command was accepted for later handling", "content": content });
        found.insert("202".to_owned(), accepted);
        for (status, text) in COMMAND_PROBLEMS {
            found.insert(status.to_owned(), problem_response(text));
        }
    }
    for (status, text) in PROBLEMS {
        found.insert(status.to_owned(), problem_response(text));
    }
    Value::Object(found)
}

/// Returns the response for one kind of error.
fn problem_response(text: &str) -> Value {
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    json!({ "description": text, "content": { "application/problem+json": { "schema": schema } } })
}

/// Returns the schema of an error response.
fn problem() -> Value {
    json!({
        "type": "object",
        "description": "Problem details as in RFC 9457",
        "properties": {
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "code": { "type": "string", "description": "A stable name of the error, for programs" },
            "detail": { "type": "string" },
            "data": { "type": "object", "description": "The fields of a rejection" },
        },
        "required": ["title", "status", "code", "detail"],
    })
}
