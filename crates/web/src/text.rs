//! Prompts and responses on a page. They come from models and strangers, so they are hostile.
//!
//! Markdown is shown as CommonMark with tables and strikethrough, and less: raw HTML is shown as the text it is, an image as its description and address, and
//! a link only if it goes to http, https or mailto, in a way that tells the other site nothing. Control characters that could turn the
//! reading direction of what follows are made visible.
//!
//! Not here: what the markdown means (`pulldown-cmark`).

use maud::{Markup, PreEscaped, html};
use polity_chart::escape;
use polity_rows::{Message, Text};
use polity_store::Content;
use pulldown_cmark::{CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};

/// Markdown, safely.
pub(crate) fn markdown(source: &str) -> Markup {
    let source = visible(source);
    let mut options = Options::empty();
    options.insert(Options::ENABLE_TABLES);
    options.insert(Options::ENABLE_STRIKETHROUGH);
    let mut open_links = Vec::new();
    let events = Parser::new_ext(&source, options).map(|event| match event {
        // Blocks of HTML come as lines of their own inside a paragraph-like block.
        Event::Html(raw) | Event::InlineHtml(raw) => Event::Text(raw),
        Event::Start(Tag::HtmlBlock) => Event::Start(Tag::Paragraph),
        Event::End(TagEnd::HtmlBlock) => Event::End(TagEnd::Paragraph),
        Event::Start(Tag::Link { link_type, dest_url, .. }) => {
            let url = address(&dest_url, link_type);
            open_links.push(url.is_some());
            ours(url.map_or_else(String::new, |url| {
                format!(
                    "<a href=\"{}\" rel=\"nofollow noopener noreferrer\" target=\"_blank\">",
                    escape(&url)
                )
            }))
        }
        Event::End(TagEnd::Link) => {
            ours(if open_links.pop() == Some(true) { "</a>".into() } else { String::new() })
        }
        Event::Start(Tag::Image { dest_url, .. }) => {
            ours(format!("<span class=\"image\">[image {}: ", escape(&dest_url)))
        }
        Event::End(TagEnd::Image) => ours("]</span>".into()),
        // Headings of a response must not become headings of our page; they are shown as such by their class.
        Event::Start(Tag::Heading { level, .. }) => ours(format!("<p class=\"heading h{}\">", level as u8)),
        Event::End(TagEnd::Heading(_)) => ours("</p>".into()),
        Event::SoftBreak => Event::HardBreak,
        // A fence's language would become a class; nobody needs it.
        Event::Start(Tag::CodeBlock(_)) => ours("<pre tabindex=\"0\"><code>".into()),
        Event::End(TagEnd::CodeBlock) => ours("</code></pre>".into()),
        other => other,
    });
    let mut out = String::with_capacity(source.len() * 5 / 4);
    pulldown_cmark::html::push_html(&mut out, events);
    // A wide table scrolls, so keys must reach it. A `<` of the text itself has been escaped.
    let out = out.replace("<table>", "<table tabindex=\"0\">");
    html! { div.markdown { (PreEscaped(out)) } }
}

/// A tag of ours.
fn ours<'a>(tag: String) -> Event<'a> {
    Event::InlineHtml(CowStr::from(tag))
}

/// Where a link may go.
fn address(url: &str, link_type: LinkType) -> Option<String> {
    let url = if link_type == LinkType::Email { format!("mailto:{url}") } else { url.to_owned() };
    let lower = url.to_ascii_lowercase();
    ["https://", "http://", "mailto:"].iter().any(|scheme| lower.starts_with(scheme)).then_some(url)
}

/// Marks of reading direction and other invisible controls as `�`; a model could hide words with them.
fn visible(text: &str) -> String {
    let hidden = |c: char| {
        matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}')
            || (c.is_control() && !matches!(c, '\n' | '\t' | '\r'))
    };
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// A conversation, as a chat.
pub(crate) fn chat(content: &Content) -> Markup {
    html! {
        div.chat {
            @match content {
                Content::Text(Text::Plain(text)) => (turn("user", text, &[])),
                Content::Text(Text::Messages(messages)) => @for message in messages { (message_turn(message)) },
                Content::Reference { reference } => (unknown(reference)),
            }
        }
    }
}

/// A response: its text, or its turns if there are several.
pub(crate) fn response(content: &Content) -> Markup {
    match content {
        Content::Text(Text::Plain(text)) => said(text),
        Content::Text(Text::Messages(messages)) => match messages.as_slice() {
            [only] if only.role == "assistant" && only.extra.is_empty() => said(&only.content),
            all => html! { div.chat { @for message in all { (message_turn(message)) } } },
        },
        Content::Reference { reference } => unknown(reference),
    }
}

fn said(text: &str) -> Markup {
    match text.trim().is_empty() {
        true => html! { p.empty { "(an empty response)" } },
        false => markdown(text),
    }
}

fn unknown(reference: &str) -> Markup {
    html! { p.empty { "The imported file did not hold this text; it calls it " code { (visible(reference)) } "." } }
}

fn message_turn(message: &Message) -> Markup {
    let extra: Vec<(&String, String)> =
        message.extra.iter().map(|(key, value)| (key, value.to_string())).collect();
    turn(&message.role, &message.content, &extra)
}

fn turn(role: &str, text: &str, extra: &[(&String, String)]) -> Markup {
    let name = match role {
        "user" => "Person",
        "assistant" => "Assistant",
        "system" | "developer" => "Instructions",
        other => other,
    };
    let class = if Message::ROLES.contains(&role) { role } else { "other" };
    html! {
        div.turn.(class) {
            p.who { (name) }
            @if !text.is_empty() || extra.is_empty() { (said(text)) }
            @for (key, value) in extra { p.extra { code { (key) } " " code { (visible(value)) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expect: &str) {
        assert_eq!(
            markdown(source).into_string(),
            format!("<div class=\"markdown\">{expect}</div>"),
            "{source}"
        );
    }

    #[test]
    fn markdown_is_shown_and_html_is_text() {
        check("a *b* `c<d>`", "<p>a <em>b</em> <code>c&lt;d&gt;</code></p>\n");
        check("one\ntwo", "<p>one<br />\ntwo</p>\n");
        check("# Big", "<p class=\"heading h1\">Big</p>");
        check("a <b onclick=x()>b</b>", "<p>a &lt;b onclick=x()&gt;b&lt;/b&gt;</p>\n");
        check("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n");
        check("```x\" onload=\"y\n<i>\n```", "<pre tabindex=\"0\"><code>&lt;i&gt;\n</code></pre>");
    }

    #[test]
    fn links_go_to_the_web_or_nowhere_and_images_are_not_fetched() {
        check(
            "[a](https://x.org/\"?q=<)",
            "<p><a href=\"https://x.org/&quot;?q=&lt;\" rel=\"nofollow noopener noreferrer\" target=\"_blank\">a</a></p>\n",
        );
        check(
            "[a](https://x.org/?a=1&b=2)",
            "<p><a href=\"https://x.org/?a=1&amp;b=2\" rel=\"nofollow noopener noreferrer\" target=\"_blank\">a</a></p>\n",
        );
        for scheme in [
            "javascript:alert(1)",
            "JaVaScRiPt:alert(1)",
            "data:text/html,x",
            "/account",
            "//evil.org",
            "vbscript:x",
        ] {
            check(&format!("[a]({scheme})"), "<p>a</p>\n");
        }
        check(
            "![what](https://x.org/a.png)",
            "<p><span class=\"image\">[image https://x.org/a.png: what]</span></p>\n",
        );
        check(
            "<https://x.org>",
            "<p><a href=\"https://x.org\" rel=\"nofollow noopener noreferrer\" target=\"_blank\">https://x.org</a></p>\n",
        );
        check(
            "<a@b.org>",
            "<p><a href=\"mailto:a@b.org\" rel=\"nofollow noopener noreferrer\" target=\"_blank\">a@b.org</a></p>\n",
        );
    }

    #[test]
    fn marks_of_direction_are_made_visible() {
        check("a\u{202e}b\u{0}", "<p>a\u{fffd}b\u{fffd}</p>\n");
        // As an entity a control character reaches the address after the text was looked at.
        check(
            "![what](https://x.org/&#1;.png)",
            "<p><span class=\"image\">[image https://x.org/\u{fffd}.png: what]</span></p>\n",
        );
    }
}
