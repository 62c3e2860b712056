//! Text from models and people is hostile: wherever it can be put in, it comes out as text.

use std::fs;

use polity_store::*;
use serde_json::json;

use crate::sample;
use crate::site::{Site, plain};

/// Each holds `zz` where, if it were not escaped, a tag, an attribute or an address of its own would begin.
const PAYLOADS: &[&str] = &[
    "<script>zz()</script>",
    "<zz>",
    "</textarea><zz>",
    "</title></style></script><zz x=",
    "\" onfocus=zz autofocus x=\"",
    "' onfocus=zz autofocus x='",
    "`onfocus=zz`",
    "<img src=x onerror=zz()>",
    "<svg/onload=zz()>",
    "<!--<zz>-->",
    "<![CDATA[<zz>]]>",
    "&lt;zz&gt;&#60;zz&#62;",
    "[x](javascript:zz())",
    "[x](java\tscript:zz())",
    "[x](data:text/html,<zz>)",
    "<javascript:zz()>",
    "![x](https://zz.example/pixel.png)",
    "[x]: javascript:zz()\n\n[x]",
    "<a href=\"javascript:zz()\">x</a>",
    "<iframe src=//zz.example></iframe>",
    "<form action=//zz.example><button>x",
    "<meta http-equiv=refresh content=\"0;//zz.example\">",
    "<base href=//zz.example>",
    "```\"><zz>\ncode\n```",
    "# <zz>\n| <zz> | b |\n|--|--|\n| <zz onclick=zz> | c |",
    "'; DROP TABLE vote; --",
    "\"; DELETE FROM account WHERE \"1\"=\"1",
    "1 OR 1=1",
    "$1 :x ?1 @p",
    "%' OR name LIKE '%",
    "{{7*7}} ${7*7} #{7*7} <%= 7*7 %>",
    "\u{202e}zz\u{2066}",
    "\\x3czz\\x3e \\u003czz",
    "a\u{0}b",
];

/// Every tag in a page of ours that a payload could have made; and every address it could have planted.
fn check(place: &str, page: &str) {
    let lower = page.to_lowercase();
    // Nothing of a payload may stand inside a tag, outside of a quoted value.
    let mut rest = lower.as_str();
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        let mut quoted = false;
        let mut bare = String::new();
        let mut end = rest.len();
        for (i, c) in rest.char_indices() {
            match c {
                '"' => quoted = !quoted,
                '>' if !quoted => {
                    end = i;
                    break;
                }
                c if !quoted => bare.push(c),
                _ => {}
            }
        }
        assert!(!bare.contains("zz"), "{place}: the tag {}", &rest[..end.min(200)]);
        let tag: String =
            bare[1..].chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '!')).collect();
        let known = ["iframe", "img", "form action=//", "base", "object", "embed", "style"];
        assert!(!known.contains(&tag.as_str()), "{place}: <{tag}");
        let tag_text = &rest[..end];
        for attribute in [" href=\"", " src=\"", " action=\""] {
            for value in tag_text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
                let ours = value.starts_with('/') && !value.starts_with("//")
                    || value.starts_with('#')
                    || value.starts_with("https://") && !value.contains("zz");
                assert!(ours && !value.contains("script:"), "{place}: {attribute}{value}");
            }
        }
        rest = &rest[end.min(rest.len() - 1) + 1..];
    }
    assert_eq!(lower.matches("<script").count(), 1, "{place}: our own script alone");
}

#[test]
fn the_check_would_notice() {
    for bad in ["<p><zz></p>", "<p x=\"\" onfocus=zz>", "<a href=\"javascript:1\">", "<iframe>"] {
        let page = format!("<script src=\"/static/app.js\"></script>{bad}");
        assert!(std::panic::catch_unwind(|| check("here", &page)).is_err(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_come_out_as_text_on_every_page() {
    for payload in PAYLOADS {
        everywhere(payload).await;
    }
}

async fn everywhere(payload: &str) {
    let clean: String = payload.chars().filter(|c| !c.is_control()).collect();
    let rubric = Rubric {
        title: payload.into(),
        instructions: payload.into(),
        axes: vec![Axis { key: "axis".into(), label: payload.into(), help: payload.into() }],
        examples: vec![Example {
            prompt: payload.into(),
            left: payload.into(),
            right: payload.into(),
            answer: payload.into(),
        }],
    };
    let site = Site::with(Policy { calibration_first: 1, ..plain(2) }, rubric, &clean).await;
    let prompt = Content::plain(payload);
    let id = prompt_id(&prompt);
    let messages = serde_json::json!([{"role": "user", "content": payload, "name": payload}, {"role": "assistant", "content": payload}]);
    let talk: Content = serde_json::from_value(messages).unwrap();
    let talk_id = prompt_id(&talk);
    let response = |of: &str, text: &str, model: &str| NewResponse {
        prompt_id: of.into(),
        content: Content::plain(text),
        model: model.into(),
        model_hash: None,
        sampler: None,
        sample_index: None,
        origin: clean.clone(),
    };
    let responses = [
        response(&id, payload, "m1"),
        response(&id, "other", &clean),
        response(&talk_id, payload, "m1"),
        response(&talk_id, "other", &clean),
    ];
    let ids: Vec<String> =
        responses.iter().map(|r| response_id(&r.prompt_id, &r.content, &r.model)).collect();
    let comparison = |of: &str, a: usize, b: usize| NewComparison {
        prompt_id: of.into(),
        responses: [ids[a].clone(), ids[b].clone()],
        wanted: 2,
        queued: true,
        origin: clean.clone(),
    };
    let material = Material {
        prompts: vec![
            NewPrompt { content: prompt, category: clean.clone(), origin: clean.clone() },
            NewPrompt { content: talk, category: clean.clone(), origin: clean.clone() },
        ],
        comparisons: vec![comparison(&id, 0, 1), comparison(&talk_id, 2, 3)],
        responses: responses.into(),
    };
    site.store.add_material(material, site.now()).await.unwrap();
    let names = [comparison_id(&ids[0], &ids[1]), comparison_id(&ids[2], &ids[3])];
    let name = clean.trim().to_owned();
    let mut admin = site.client(&format!("{name}."), &[Role::Admin]).await;
    let known = CalibrationItem {
        comparison_id: names[0].clone(),
        expected: Answer::Tie,
        explanation: payload.into(),
        active: true,
    };
    site.store.set_calibration(known, &admin.id, site.now()).await.unwrap();

    // Votes with a reason, on both.
    let mut pages = Vec::new();
    for _ in 0..2 {
        let page = admin.get("/compare").await;
        let given = page.field("assignment").unwrap_or_else(|| panic!("{payload}: {}", page.text));
        pages.push(("compare".to_owned(), page.text));
        let voted =
            admin.post("/compare", &[("assignment", &given), ("answer", "tie"), ("reason", payload)]).await;
        let to = voted.to().to_owned();
        pages.push(("feedback".to_owned(), admin.get(&to).await.text));
    }
    admin.post(&format!("/review/{}", names[1]), &[("answer", "tie"), ("reason", payload)]).await;
    let made = admin.post("/people/invites", &[("roles", "annotator"), ("note", payload)]).await;
    pages.push(("invite".into(), made.text));
    pages.push(("token".into(), admin.post("/account/tokens", &[("name", payload)]).await.text));
    admin.post("/rubric", &[("title", payload), ("instructions", payload), ("note", payload)]).await;
    boards(&site, payload).await;
    site.wait(60_000);
    let annotators = site.store.annotators().await.unwrap();
    let mut paths: Vec<String> = [
        "/compare",
        "/rubric",
        "/rubric/1",
        "/rubric/edit",
        "/review",
        "/review/all",
        "/panel",
        "/calibration",
        "/datasets",
        "/ledger",
        "/people",
        "/settings",
        "/overview",
        "/account",
        "/formulas",
        "/runs",
        "/runs/hostile",
        "/runs/compare?run=hostile&run=second",
        "/evaluations",
        "/verdicts",
        "/releases",
        "/releases/production-1/card",
    ]
    .map(String::from)
    .into();
    paths.extend(names.iter().map(|name| format!("/review/{name}")));
    paths.extend(annotators.iter().map(|annotator| format!("/panel/{}", annotator.id)));
    let encoded: String =
        form_urlencoded::byte_serialize(payload.as_bytes()).collect::<String>().replace('+', "%20");
    let verdicts = site.store.verdicts().await.unwrap();
    paths.extend(verdicts.iter().map(|verdict| format!("/verdicts/{}", verdict.id)));
    paths.extend([
        format!("/runs/{encoded}"),
        format!("/runs/compare?run={encoded}"),
        format!("/evaluations?model={encoded}&baseline={encoded}"),
        format!("/verdicts/{encoded}"),
        format!("/releases/{encoded}/card"),
        format!("/review/{encoded}"),
        format!("/panel/{encoded}"),
        format!("/review/all?after={encoded}"),
        format!("/signin?next={encoded}"),
        format!("/invite/{encoded}"),
        format!("/static/{encoded}"),
        format!("/{encoded}"),
    ]);
    for path in paths {
        let page = admin.get(&path).await;
        assert!(!page.status.is_server_error(), "{payload}: {path}: {:?}", site.log.lock().unwrap());
        pages.push((path, page.text));
    }
    let mut stranger = site.stranger();
    stranger.get("/signin").await;
    let refused =
        stranger.post("/signin", &[("name", payload), ("password", payload), ("next", payload)]).await;
    pages.push(("signin".into(), refused.text));
    for (path, page) in &pages {
        if !page.is_empty() && !page.starts_with('{') {
            check(&format!("{payload} on {path}"), page);
        }
    }
    // The database stands, and holds the payload as it was.
    let votes = site.store.votes_by(&admin.id, 10).await.unwrap();
    assert_eq!(votes.len(), 2, "{payload}");
    assert!(votes.iter().all(|vote| vote.reason == payload.trim()), "{payload}: {votes:?}");
    assert_eq!(site.store.accounts().await.unwrap().len(), 1);
}

/// The payload wherever the dashboards take a text from.
async fn boards(site: &Site, payload: &str) {
    let dir = site.dir().join("runs/hostile");
    fs::create_dir_all(&dir).unwrap();
    let numbers = json!({"step": 1, "loss": 1.0, payload: 2.0, "objective/kl": 1.0});
    fs::write(dir.join("metrics.jsonl"), format!("{numbers}\n{payload}\n")).unwrap();
    let alarm = json!({"step": 1, "alarm": payload, "severity": payload, "raised": true, "message": payload});
    let known = json!({"step": 1, "alarm": "kl_explosion", "raised": true, "message": payload});
    fs::write(dir.join("alarms.jsonl"), format!("{alarm}\n{known}\n")).unwrap();
    let sample = json!({"step": 1, "prompt_index": 0, "prompt": payload, "response": payload});
    fs::write(dir.join("samples.jsonl"), format!("{sample}\n")).unwrap();
    let settings = toml_of(payload);
    fs::write(dir.join("resolved.toml"), settings).unwrap();
    let input = json!({"role": payload, "path": payload, "blake3": payload});
    let manifest = json!({
        "stage": payload, "command": [payload], "seed": payload, "finished": payload, "started": payload, "inputs": [input],
        "machine": {"cpu": payload, "isa": payload},
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    // A run of the name itself, where a file system can have it.
    let name: String = payload.chars().filter(|c| !matches!(c, '/' | '\0')).take(80).collect();
    sample::write_run(&site.dir().join("runs").join(name), 1.0, 2, None).unwrap();
    sample::write_run(&site.dir().join("runs/second"), 1.0, 2, None).unwrap();
    sample::recorded(&site.store, payload, payload, site.now()).await.unwrap();

    let measure = json!({
        "name": payload, "category": payload, "unit": payload, "estimate": 0.5, "low": 0.4, "high": 0.6, "n": 9, "confidence": 0.9,
    });
    let evaluation = json!({"model": payload, "suite": payload, "suite_name": payload, "settings": {payload: payload}, "measures": [measure]});
    fs::create_dir_all(site.dir().join("measures")).unwrap();
    fs::write(site.dir().join("measures/hostile.json"), evaluation.to_string()).unwrap();
    let effect = json!({"estimate": 0.1, "low": 0.0, "high": 0.2, "prompts": payload});
    let criterion = json!({
        "id": payload, "verdict": payload, "reason": payload, "mode": payload, "comparator": payload, "margin": 0.1,
        "measure": {"name": payload, "category": payload, "unit": payload, "estimate": 0.1, "n": payload}, "effect": effect,
    });
    let new = NewVerdict {
        model: payload.into(),
        verdict: "pass".into(),
        policy_name: payload.into(),
        policy: payload.into(),
        approvals: 0,
        valid_days: 30,
        evaluations: vec![(payload.into(), evaluation.to_string(), payload.into())],
        said: json!({"criteria": [criterion], "baseline": payload}).to_string(),
        code_version: payload.into(),
    };
    site.store.add_verdict(new, payload, site.now()).await.unwrap();
    sample::released(&site.store, site.dir(), payload, None, payload, site.now()).await.unwrap();
    fs::write(site.dir().join("releases/production-1/README.md"), format!("---\n{payload}\n---\n{payload}"))
        .unwrap();
    let asked = Asked { model: payload.into(), channel: "other".into(), verdict: Some(payload.into()) };
    let _ = site.store.may_release(asked, payload, site.now()).await;
    let said = json!({"channel": "production", "message": payload});
    site.store.append_event("alarm", payload, said, site.now()).await.unwrap();
    let refusal = json!({"channel": payload, "why": payload, "refused": payload});
    site.store.append_event("refusal", payload, refusal, site.now()).await.unwrap();
}

/// A setting with the payload as key and value.
fn toml_of(payload: &str) -> String {
    let quoted: String = payload.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
    format!("\"{quoted}\" = \"{quoted}\"\n")
}
