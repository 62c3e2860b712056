//! The API's document: OpenAPI 3.1, of what this server has beside OpenAI's own description, and what it takes of that.

use serde_json::{Value, json};

/// The document.
pub fn openapi() -> Value {
    let text = json!({"type": "string"});
    let integer =
        |minimum: i64, about: &str| json!({"type": "integer", "minimum": minimum, "description": about});
    let number = |about: &str| json!({"type": "number", "description": about});
    let yes = |about: &str| json!({"type": "boolean", "description": about});
    let sampling = json!({
        "model": {"type": "string", "description": "A channel, or CHANNEL:stable or CHANNEL:canary."},
        "n": integer(1, "Responses to each prompt."),
        "stream": yes("Server-sent events."),
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "max_tokens": integer(0, "Most tokens of a response; 0 with `echo` alone."),
        "max_completion_tokens": integer(1, "The newer name of max_tokens."),
        "temperature": number("From 0, which takes the likeliest token, to 2."),
        "top_p": number("Only the likeliest tokens that together reach this probability."),
        "top_k": integer(-1, "Only the k likeliest tokens; 0 or -1 is all."),
        "min_p": number("Only tokens at least this times as likely as the likeliest."),
        "repetition_penalty": number("Above 1: tokens already seen become unlikelier."),
        "min_tokens": integer(0, "No stop token before this many."),
        "stop": {"description": "Texts that end a response and are not in it.", "oneOf": [text, {"type": "array", "items": text}]},
        "stop_token_ids": {"type": "array", "items": {"type": "integer"}},
        "seed": {"type": "integer", "description": "The same seed, prompt and settings give the same response."},
        "user": {"type": "string", "description": "Who it is for: a user stays with one arm of a channel."},
        "return_token_ids": yes("Adds `token_ids` to each choice."),
    });
    let with = |more: Value, required: &[&str]| {
        let mut properties = sampling.clone();
        for (name, schema) in more.as_object().into_iter().flatten() {
            properties[name] = schema.clone();
        }
        json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
    };
    let chat = with(
        json!({
            "messages": {"type": "array", "items": {"type": "object", "required": ["role"]}},
            "logprobs": {"type": "boolean"},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "chat_template_kwargs": {"type": "object", "description": "Variables of the chat template."},
        }),
        &["model", "messages"],
    );
    let completions = with(
        json!({
            "prompt": {"description": "A text, token ids, or a list of either."},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "echo": {"type": "boolean", "description": "The prompt before each response; with `logprobs`, its tokens too."},
        }),
        &["model", "prompt"],
    );
    let answer = json!({"type": "object", "required": ["id"], "properties": {"id": text, "choice": integer(0, "Which of its choices.")}});
    let thumb = json!({
        "type": "object", "required": ["id", "thumb"], "additionalProperties": false,
        "properties": {
            "id": text, "choice": integer(0, "Which of its choices."), "thumb": {"enum": ["up", "down"]}, "reason": text,
        },
    });
    let preference = json!({
        "type": "object", "required": ["first", "second", "answer"], "additionalProperties": false,
        "properties": {"first": answer, "second": answer, "answer": {"enum": ["first", "second", "tie"]}, "reason": text},
    });
    let operation = |about: &str, body: Option<Value>| {
        let mut operation = json!({
            "summary": about,
            "security": [{"key": []}],
            "responses": {
                "200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}},
                "429": {"description": "As many requests are open as may be; Retry-After says when to come again."},
                "default": {"description": "Refused.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}},
            },
        });
        if let Some(schema) = body {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        operation
    };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Polity, serving",
            "version": "1",
            "description": "Chat and completions as OpenAI's API has them, and feedback on the answers. Fields that are not listed are refused \
                            unless they change nothing.",
        },
        "paths": {
            "/v1/chat/completions": {"post": operation("Answers a conversation.", Some(chat))},
            "/v1/completions": {"post": operation("Continues texts.", Some(completions))},
            "/v1/models": {"get": operation("Channels and their arms.", None)},
            "/v1/models/{model}": {"get": operation("One of them.", None)},
            "/v1/feedback": {"post": operation("A thumb on an answer.", Some(thumb))},
            "/v1/feedback/preference": {"post": operation("Which of two answers to one prompt is better.", Some(preference))},
            "/v1/channels": {"get": operation("What is served where, and how each criterion of the monitor stands.", None)},
            "/v1/metrics": {"get": operation("Numbers for Prometheus.", None)},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {"message": text, "type": text, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}},
                }},
            }},
        },
    })
}
