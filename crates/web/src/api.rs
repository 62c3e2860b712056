//! The API's document: OpenAPI 3.1, made from the table of routes, so that it cannot say anything else than the server does.

use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::Outcome;
use crate::field::Field;
use crate::route::{Access, Call, Route, json_response, route, routes};

pub(crate) const ROUTES: &[Route] =
    &[route!(GET "/api/v1/openapi.json" Access::Public, "This document.", [], [], document)];

async fn document(_app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&openapi()))
}

/// The document.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for route in routes().filter(|route| route.is_api()) {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Polity",
            "version": "1",
            "description": "Everything that the pages do, for programs. Times are milliseconds since 1970 (UTC). A refused request has \
                            a status of 4xx and `{\"error\": {\"code\", \"message\"}}`. Tokens are made under Account.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {
                    "type": "object",
                    "required": ["code", "message"],
                    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                }},
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let parts = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = parts
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.about,
        "description": who(route.access),
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": object(route.returns)}}},
            "default": {"description": "Refused.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
        },
    });
    if route.access != Access::Public {
        operation["security"] = json!([{"token": []}]);
    }
    if route.method == "GET" {
        parameters.extend(route.fields.iter().map(|field| {
            json!({
                "name": field.name, "in": "query", "required": field.required, "description": field.about,
                "schema": field.schema(),
            })
        }));
    } else {
        let required = route.fields.iter().any(|field| field.required);
        operation["requestBody"] =
            json!({"required": required, "content": {"application/json": {"schema": object(route.fields)}}});
    }
    operation["parameters"] = json!(parameters);
    operation
}

/// `post_comparisons_adjudication`: the method and the fixed parts of the path.
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/v1/");
    let parts = path.split('/').map(|part| match part.strip_prefix('{') {
        Some(name) => format!("by_{}", name.trim_end_matches('}')),
        None => part.replace('.', "_"),
    });
    let parts: Vec<String> = std::iter::once(route.method.to_lowercase()).chain(parts).collect();
    parts.join("_")
}

fn who(access: Access) -> String {
    match access {
        Access::Public => "For everybody.".into(),
        Access::SignedIn => "For every account.".into(),
        Access::Roles([]) => "For administrators.".into(),
        Access::Roles(roles) => {
            let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
            format!("For accounts with the role {}, and administrators.", names.join(" or "))
        }
    }
}

fn object(fields: &[Field]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.to_owned(), field.schema())).collect();
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}
