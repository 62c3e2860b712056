//! Files that the pages need, out of the binary, and what monitors ask for.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use maud::{PreEscaped, html};
use polity_store::Role;

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::page;
use crate::route::{Access, Call, Route, json_response, route};

const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/app.js");
const ICON: &str = include_str!("assets/icon.svg");
/// Where each figure of the panel pages is explained.
const FORMULAS: &str = include_str!("../../../docs/agreement.md");

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/static/{name}" Access::Public, "A file of the pages.", [], [], file),
    route!(GET "/healthz" Access::Public, "Whether the server can read its store.", [], [], health),
    route!(GET "/metrics" Access::Roles(&[Role::Reviewer]), "Counters for Prometheus; takes a token.", [], [], metrics),
    route!(GET "/formulas" Access::SignedIn, "The formula of each figure.", [], [], formulas),
];

async fn file(_app: App, call: Call) -> Outcome<Response> {
    let (kind, text) = match call.part("name") {
        "style.css" => ("text/css; charset=utf-8", format!("{}\n{STYLE}", polity_chart::STYLE)),
        "app.js" => ("text/javascript; charset=utf-8", SCRIPT.to_owned()),
        "icon.svg" => ("image/svg+xml", ICON.to_owned()),
        _ => return Err(Failure::NotFound),
    };
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    Ok(response)
}

async fn health(app: App, _call: Call) -> Outcome<Response> {
    app.store().project().await?;
    Ok(json_response(&serde_json::json!({"status": "ok"})))
}

async fn metrics(app: App, _call: Call) -> Outcome<Response> {
    let text = app.metrics().render(&app.progress().await?);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn formulas(app: App, call: Call) -> Outcome<Response> {
    // The document is ours, so its headings may be the page's, each with the anchor that figures link to.
    let body = html! { article.card.markdown.prose { (PreEscaped(document(FORMULAS))) } };
    Ok(page::page(&app, &call, "Formulas", body))
}

/// Our own markdown as HTML: headings have anchors, of words in small letters with hyphens.
fn document(source: &str) -> String {
    use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
    let mut options = Options::empty();
    options.insert(Options::ENABLE_TABLES);
    // Links to other documents lead nowhere here; their words stay.
    let mut leads = Vec::new();
    let mut events: Vec<Event<'_>> = Parser::new_ext(source, options)
        .filter(|event| match event {
            Event::Start(Tag::Link { dest_url, .. }) => {
                leads.push(dest_url.starts_with('#') || dest_url.starts_with("https://"));
                leads.last() == Some(&true)
            }
            Event::End(TagEnd::Link) => leads.pop() == Some(true),
            _ => true,
        })
        .collect();
    for at in 0..events.len() {
        if !matches!(events[at], Event::Start(Tag::Heading { .. })) {
            continue;
        }
        let words: String = events[at + 1..]
            .iter()
            .take_while(|event| !matches!(event, Event::End(TagEnd::Heading(_))))
            .filter_map(|event| match event {
                Event::Text(text) | Event::Code(text) => Some(text.to_string()),
                _ => None,
            })
            .collect();
        if let Event::Start(Tag::Heading { id, .. }) = &mut events[at] {
            *id = Some(anchor(&words).into());
        }
    }
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, events.into_iter());
    // What scrolls must be reachable by keys.
    out.replace("<pre>", "<pre tabindex=\"0\">").replace("<table>", "<table tabindex=\"0\">")
}

/// A heading's anchor, as code hosts make it.
fn anchor(heading: &str) -> String {
    let small = heading.to_lowercase();
    let kept = small.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect()
}

/// Whether the formulas have this anchor.
#[cfg(test)]
pub(crate) fn has_anchor(name: &str) -> bool {
    document(FORMULAS).contains(&format!("id=\"{name}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_have_anchors_and_links_lead_somewhere() {
        assert_eq!(document("[a](#b) [c](d.md)"), "<p><a href=\"#b\">a</a> c</p>\n");
        assert_eq!(
            document("## Cohen's kappa, *plain*"),
            "<h2 id=\"cohens-kappa-plain\">Cohen's kappa, <em>plain</em></h2>\n"
        );
    }
}
