//! A frozen dataset as a file of rows for training.
//!
//! The rows are read twice: for the file's hash, which goes into the ledger, and then for the answer, a page at a time, so that no dataset is
//! too large. Datasets never change, so what is sent is what was hashed. A row is what `polity export` writes.

use std::ops::Range;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use maud::{Markup, html};
use polity_store::{Dataset, ExportOptions, ExportRow, LabelRule, Part, Store, StoreError};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::project::ADMINS;
use crate::route::{Call, Route, route};

/// Rows read from the store at a time.
const PAGE: i64 = 500;

const EXPORT: &[Field] = &[
    needed("name", Kind::Text, "The dataset's name."),
    needed("part", Kind::OneOf(&["train", "validation", "holdout"]), "Which part."),
    needed(
        "labels",
        Kind::OneOf(&["own", "majority", "soft", "model"]),
        "The label rule; its own is the one it was frozen with.",
    ),
    may("margins", Kind::Yes, "Whether rows have `margin`, the mean strength of the judgements."),
    may("weights", Kind::Yes, "Whether rows have `weight`, the number of judgements."),
];

pub(crate) const ROUTES: &[Route] = &[
    route!(POST "/datasets/export" ADMINS, "A part of a dataset as rows for training; an event.", *EXPORT, [], export_page),
    route!(POST "/api/v1/datasets/export" ADMINS, "A part of a dataset as rows for training; an event.", *EXPORT,
        [
            needed("export", Kind::Object, "The event: `dataset`, `hash`, `labels`, and `files` with the hash of the rows as lines of JSON."),
            needed("rows", Kind::Objects, "`prompt`, `chosen`, `rejected`, `label`, …, as `polity export` writes them."),
        ], export_api),
];

/// The form that asks for one.
pub(crate) fn form(call: &Call, all: &[Dataset]) -> Markup {
    let fields = html! {
        label { span { "Dataset" }
            select name="name" { @for dataset in all.iter().rev() { option value=(dataset.name) { (dataset.name) } } }
        }
        label { span { "Part" }
            select name="part" { @for part in Part::ALL { option value=(part.name()) { (part.name()) } } }
        }
        label { span { "Labels" }
            select name="labels" {
                option value="own" { "as frozen" } option value="majority" { "hard, by majority" }
                option value="soft" { "soft, by vote share" } option value="model" { "soft, by reliability" }
            }
        }
        label.tick { input type="checkbox" name="margins"; span { "With margins" } }
        label.tick { input type="checkbox" name="weights"; span { "With weights" } }
        button.primary type="submit" { "Export" }
        p.hint { "The holdout is for the last word on a model, and no longer one once it was trained on." }
    };
    page::form(call, "/datasets/export", fields)
}

async fn export_page(app: App, call: Call) -> Outcome<Response> {
    let (lines, body) = export(&app, &call).await?;
    let mut response = lines.body().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    // A dataset's name has nothing in it that would have to be quoted.
    let name = body["files"][0]["name"].as_str().unwrap_or_default();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

async fn export_api(app: App, call: Call) -> Outcome<Response> {
    let (lines, body) = export(&app, &call).await?;
    let rows =
        Rows { before: format!("{{\"export\":{body},\"rows\":["), between: b",", after: b"]}", ..lines };
    Ok(([(header::CONTENT_TYPE, "application/json")], rows.body()).into_response())
}

/// Hashes the rows, notes the export, and returns the rows as lines, still to be read, and the event's body.
async fn export(app: &App, call: &Call) -> Outcome<(Rows, Value)> {
    let dataset = app.store().dataset(call.text("name")).await?;
    let part = Part::ALL.into_iter().find(|part| part.name() == call.text("part"));
    let part = part.expect("the field allows no other");
    let asked = [LabelRule::Majority, LabelRule::Soft, LabelRule::Model];
    let labels = dataset.rule(asked.into_iter().find(|rule| rule.name() == call.text("labels")))?;
    let lines = Rows {
        store: app.store().clone(),
        name: dataset.name.clone(),
        options: ExportOptions { labels, margins: call.yes("margins"), weights: call.yes("weights") },
        left: dataset.rows_of(part),
        read: 0,
        ended: false,
        before: String::new(),
        between: b"\n",
        after: b"\n",
    };
    let (mut reading, mut hash) = (lines.clone(), blake3::Hasher::new());
    while let Some(bytes) = reading.next().await? {
        hash.update(&bytes);
    }
    if reading.read == 0 {
        return Err(Failure::Input(format!(
            "dataset {} has no {} rows with a label by `{}`",
            dataset.name,
            part.name(),
            labels.name()
        )));
    }
    let body = json!({
        "dataset": dataset.name, "hash": dataset.hash, "labels": labels.name(),
        "files": [{
            "name": format!("{}-{}.jsonl", dataset.name, part.name()), "part": part.name(), "rows": reading.read,
            "blake3": hash.finalize().to_hex().as_str(),
        }],
    });
    app.store().append_event("export", call.id(), body.clone(), call.now_ms).await?;
    Ok((lines, body))
}

/// A part of a dataset, as it is read and written: `before`, the rows with `between` between them, `after`.
#[derive(Clone)]
struct Rows {
    store: Store,
    name: String,
    options: ExportOptions,
    /// Positions still to be read.
    left: Range<i64>,
    /// Rows written so far.
    read: usize,
    ended: bool,
    before: String,
    between: &'static [u8],
    after: &'static [u8],
}

impl Rows {
    fn body(self) -> Body {
        Body::from_stream(stream::try_unfold(self, |mut rows| async move {
            Ok::<_, StoreError>(rows.next().await?.map(|bytes| (bytes, rows)))
        }))
    }

    /// The next page's bytes; none after the end. Rows that have no label by the rule are left out.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.before).into_bytes();
        let limit = PAGE.min(self.left.end - self.left.start);
        let page = self.store.dataset_rows(&self.name, self.left.start, limit).await?;
        self.left.start += limit;
        for row in page.into_iter().filter_map(|row| ExportRow::of(row, &self.options)) {
            if self.read > 0 {
                bytes.extend_from_slice(self.between);
            }
            serde_json::to_writer(&mut bytes, &row).expect("a row of texts and numbers is JSON");
            self.read += 1;
        }
        if self.left.is_empty() {
            self.ended = true;
            bytes.extend_from_slice(self.after);
        }
        Ok(Some(bytes.into()))
    }
}
