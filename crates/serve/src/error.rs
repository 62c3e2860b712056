//! Refusals in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::scheduler::Refused;

/// Why a request is not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which to try again.
    pub(crate) retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after_s: None }
    }

    /// A wrong value: what was found, what was expected.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message, Some("invalid_value"))
        }
    }

    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message, None)
    }

    /// More tokens than there can ever be room for.
    pub(crate) fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::field(param, message) }
    }

    pub(crate) fn no_model(name: &str, known: &str) -> Self {
        let message = format!("the model `{name}` does not exist here; there is {known}");
        let code = Some("model_not_found");
        Self { param: Some("model".into()), ..Self::new(StatusCode::NOT_FOUND, message, code) }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message, None)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this needs a key that is good here, as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"))
    }

    pub(crate) fn closing() -> Self {
        let message = "the server is shutting down; try again";
        Self { retry_after_s: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message, None) }
    }

    /// The response ended before it was whole.
    pub(crate) fn cut() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the response was cut off by the server", None)
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "something broke; it is in the server's log", None)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub(crate) fn json(&self) -> Value {
        let Self { message, param, code, .. } = self;
        json!({"error": {"message": message, "type": self.kind(), "param": param, "code": code}})
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy { retry_after_s } => Self {
                retry_after_s: Some(retry_after_s),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, refused.to_string(), Some("rate_limit_exceeded"))
            },
            Refused::TooLarge { .. } => Self::too_long("max_tokens", refused.to_string()),
            Refused::TooMany { .. } => Self::field("n", refused.to_string()),
            Refused::Closed => Self::closing(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let mut response = (self.status, json, self.json().to_string()).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
