//! Streams: their pieces together are the whole answer, in whole characters, and never show a part of a stop string.

use axum::body::to_bytes;
use polity_lm::engine::SamplerConfig;
use polity_serve::Limits;
use serde_json::{Value, json};

use crate::site::{Site, encode, generated, stories, usual};

fn text_of(pieces: &[Value], choice: usize) -> String {
    let of_choice =
        pieces.iter().flat_map(|piece| piece["choices"].as_array().unwrap()).filter(|c| c["index"] == choice);
    of_choice.filter_map(|c| c["text"].as_str().or(c["delta"]["content"].as_str())).collect()
}

#[tokio::test]
async fn pieces_are_the_whole() {
    let site = Site::new(Limits::usual());
    for body in [
        json!({"model": "stories", "prompt": ["Once", "The"], "n": 2, "seed": 5, "max_tokens": 30, "logprobs": 2, "echo": true}),
        json!({"model": "stories", "prompt": "Once", "n": 3, "seed": 6, "max_tokens": 30, "return_token_ids": true, "stop": " the"}),
        json!({"model": "stories", "prompt": "Once", "echo": true, "max_tokens": 4, "seed": 1}),
    ] {
        let whole = site.complete(body.clone()).await;
        let mut body = body;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let pieces = site.post("/v1/completions", body.clone()).await.pieces();
        let (usage, pieces) = pieces.split_last().unwrap();
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
        assert!(pieces.iter().all(|piece| piece["usage"].is_null() && piece["id"] == usage["id"]));
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!(text_of(pieces, index), choice["text"].as_str().unwrap(), "{body}");
            let of_choice: Vec<&Value> = pieces
                .iter()
                .map(|piece| &piece["choices"][0])
                .filter(|piece| piece["index"] == index)
                .collect();
            for (list, name) in ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
                .map(|name| (&choice["logprobs"][name], name))
            {
                let joined: Vec<Value> = of_choice
                    .iter()
                    .flat_map(|piece| piece["logprobs"][name].as_array().cloned().unwrap_or_default())
                    .collect();
                assert_eq!(
                    json!(joined),
                    if list.is_null() { json!([]) } else { list.clone() },
                    "{name}: {body}"
                );
            }
            if let (Some(offsets), true) =
                (choice["logprobs"]["text_offset"].as_array(), body["echo"] == true)
            {
                let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
                let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
                assert_eq!(
                    (&tokens[0], &offsets[..2]),
                    (&json!("<s>"), &[json!(0), json!(0)][..]),
                    "not in the text"
                );
                for (t, (token, at)) in tokens.iter().zip(offsets).enumerate().skip(1) {
                    let at = at.as_u64().unwrap() as usize;
                    // The text begins without the space of its first token.
                    let token =
                        if t == 1 { token.as_str().unwrap().trim_start() } else { token.as_str().unwrap() };
                    let there: String = text[at..].iter().take(token.chars().count()).collect();
                    assert!(there == token || token == "</s>", "{token:?} at {at}: {there:?}");
                }
            }
            if body["return_token_ids"] == true {
                let ids: Vec<Value> = of_choice
                    .iter()
                    .flat_map(|piece| piece["token_ids"].as_array().unwrap().clone())
                    .collect();
                assert_eq!(json!(ids), choice["token_ids"]);
            }
            let ends: Vec<&Value> =
                of_choice.iter().map(|piece| &piece["finish_reason"]).filter(|end| !end.is_null()).collect();
            assert_eq!(ends, [&choice["finish_reason"]]);
        }
    }
}

/// A client that reads late finds more pieces than are sent in one write.
#[tokio::test]
async fn a_late_reader_gets_every_piece() {
    let site = Site::new(Limits::usual());
    let mut body = json!({"model": "stories", "prompt": "Once", "n": 8, "seed": 5, "max_tokens": 30});
    let whole = site.complete(body.clone()).await;
    body["stream"] = json!(true);
    let unread = site.open("/v1/completions", body).await;
    // What began before and is shorter has ended when this has.
    site.complete(json!({"model": "stories", "prompt": "The", "max_tokens": 90, "temperature": 0})).await;
    let text = String::from_utf8(to_bytes(unread, usize::MAX).await.unwrap().to_vec()).unwrap();
    let pieces: Vec<Value> = text
        .split_terminator("\n\n")
        .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).ok())
        .collect();
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(text_of(&pieces, index), choice["text"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_chat_begins_with_its_role() {
    let site = Site::new(Limits::usual());
    let messages = json!([{"role": "user", "content": "Once upon a time"}]);
    let mut body = json!({"model": "stories", "messages": messages, "seed": 3, "n": 2, "logprobs": true, "top_logprobs": 1});
    let whole = site.post("/v1/chat/completions", body.clone()).await.ok();
    body["stream"] = json!(true);
    let pieces = site.post("/v1/chat/completions", body).await.pieces();
    assert!(
        pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk" && piece.get("usage").is_none())
    );
    for index in 0..2 {
        assert_eq!(pieces[index]["choices"][0]["delta"]["role"], "assistant");
        let choice = &whole["choices"][index];
        assert_eq!(text_of(&pieces, index), choice["message"]["content"].as_str().unwrap());
        let of_choice =
            pieces.iter().map(|piece| &piece["choices"][0]).filter(|piece| piece["index"] == index);
        let content: Vec<Value> = of_choice
            .flat_map(|piece| piece["logprobs"]["content"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!(json!(content), choice["logprobs"]["content"]);
    }
}

/// Every substring of what the model says is a stop string once.
#[tokio::test]
async fn a_stop_string_may_lie_across_tokens() {
    let site = Site::new(Limits::usual());
    let model = stories();
    let tokenizer = model.tokenizer().unwrap();
    let sampler = SamplerConfig { temperature: 0.0, max_new_tokens: 24, ..usual(&model) };
    let ids = encode(tokenizer, "Once upon a time");
    let free = generated(&model, &ids, &sampler, 0, 1).remove(0);
    let text = tokenizer.decode(&free.ids, true).unwrap();
    let mut across = 0;
    for (from, len) in (0..text.len() - 12).flat_map(|from| [2, 5, 12].map(|len| (from, len))) {
        let stop = &text[from..from + len];
        let sampler = SamplerConfig { stop_strings: vec![stop.into()], ..sampler.clone() };
        let expect = generated(&model, &ids, &sampler, 0, 1).remove(0);
        let body = json!({
            "model": "stories", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24, "stop": [stop, "not there"],
            "stream": true, "return_token_ids": true,
        });
        let pieces = site.post("/v1/completions", body).await.pieces();
        let found: String = text_of(&pieces, 0);
        assert_eq!(found, text[..text.find(stop).unwrap()], "{stop:?}");
        let given: Vec<Value> = pieces
            .iter()
            .flat_map(|piece| piece["choices"][0]["token_ids"].as_array().unwrap().clone())
            .collect();
        assert_eq!(json!(given), json!(expect.ids), "{stop:?}: the same tokens as generate");
        assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "stop");
        across += usize::from(given.len() > 1);
    }
    assert!(across > 50, "{across}");
}

/// A character of four tokens comes whole, and one that begins a stop string when the next has shown that it does not.
#[test]
fn characters_come_whole() {
    let model = stories();
    let tokenizer = model.tokenizer().unwrap();
    let text = "caf\u{e9} \u{1f600}\u{1f600} ok";
    let mut grown = polity_serve::text::GrowingText::new(tokenizer, &[], &["\u{1f600}\u{1f601}".into()]);
    let mut shown = String::new();
    for id in tokenizer.encode(text, false).unwrap() {
        let piece = grown.push(id).unwrap();
        assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
        shown += &piece;
        assert!(text.starts_with(&shown));
    }
    shown += &grown.finish().unwrap();
    assert_eq!((shown.as_str(), grown.is_stopped(), grown.shown_bytes()), (text, false, text.len()));
}
