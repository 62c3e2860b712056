//! What goes wrong, and what the browser or the program on the other side is told.
//!
//! A failure of ours is logged with a number, and the page shows the number alone: what the database said is not for strangers.

use axum::http::StatusCode;
use polity_store::StoreError;

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address could not be listened on.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a request is not answered as asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No session or token, or none that is good.
    SignIn,
    /// Signed in, and not allowed.
    Forbidden,
    /// The form's secret is missing or another session's.
    Csrf,
    /// Nothing there, or nothing that this account may know of.
    NotFound,
    /// A wrong value; what was found and what was expected.
    Input(String),
    /// True when asked, and no longer.
    Conflict(String),
    /// The body is larger than any form.
    TooLarge,
    /// The body did not come in time.
    TooSlow,
    /// Too often; seconds to wait.
    TooMany(u64),
    /// Ours. The text is for the log.
    Internal(String),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Failure::SignIn => StatusCode::UNAUTHORIZED,
            Failure::Forbidden | Failure::Csrf => StatusCode::FORBIDDEN,
            Failure::NotFound => StatusCode::NOT_FOUND,
            Failure::Input(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Failure::Conflict(_) => StatusCode::CONFLICT,
            Failure::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Failure::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Failure::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A heading.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Failure::SignIn => "Please sign in",
            Failure::Forbidden => "Not for this account",
            Failure::Csrf => "This form is out of date",
            Failure::NotFound => "Nothing here",
            Failure::Input(_) => "That does not fit",
            Failure::Conflict(_) => "Not any more",
            Failure::TooLarge => "Too large",
            Failure::TooSlow => "Too slow",
            Failure::TooMany(_) => "Too many attempts",
            Failure::Internal(_) => "Something broke",
        }
    }

    /// A word for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Failure::SignIn => "sign_in",
            Failure::Forbidden => "forbidden",
            Failure::Csrf => "form",
            Failure::NotFound => "not_found",
            Failure::Input(_) => "input",
            Failure::Conflict(_) => "conflict",
            Failure::TooLarge => "too_large",
            Failure::TooSlow => "too_slow",
            Failure::TooMany(_) => "too_many",
            Failure::Internal(_) => "internal",
        }
    }

    /// What happened and what to do. `incident` numbers a failure of ours.
    pub(crate) fn message(&self, incident: &str) -> String {
        match self {
            Failure::SignIn => "This needs a session or a token that is still good.".into(),
            Failure::Forbidden => "An administrator can give this account the role that it needs.".into(),
            Failure::Csrf => "Go back, reload the page and send the form again.".into(),
            Failure::NotFound => "There is no such page, or it is not yours.".into(),
            Failure::Input(what) | Failure::Conflict(what) => sentence(what),
            Failure::TooLarge => format!("A form may hold {} KiB.", crate::route::BODY_BYTES_MAX / 1024),
            Failure::TooSlow => "The request did not arrive in time; send it again.".into(),
            Failure::TooMany(wait_s) => format!("Try again in {wait_s} seconds."),
            Failure::Internal(_) => {
                format!("It is written down as number {incident}; nothing that was confirmed before is lost.")
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match error {
            StoreError::NotFound { .. } => Failure::NotFound,
            StoreError::Invalid { .. } => Failure::Input(error.to_string()),
            StoreError::Refused { .. } | StoreError::LeaseLost | StoreError::Exists { .. } => {
                Failure::Conflict(error.to_string())
            }
            StoreError::Credential { .. } => Failure::SignIn,
            other => Failure::Internal(other.to_string()),
        }
    }
}

/// An error's text as a sentence.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if text.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}
