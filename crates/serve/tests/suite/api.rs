//! Whole answers: they are `polity generate`'s; log-probs, echo, errors.

use axum::http::StatusCode;
use futures_util::future::join_all;
use polity_compute::{Batch, Cpu, Decoder, Recompute, Tape};
use polity_lm::engine::SamplerConfig;
use polity_serve::Limits;
use serde_json::{Value, json};

use crate::site::{KEY, Site, chatty, encode, generated, served, stories, usual};

fn ids(choice: &Value) -> Vec<u32> {
    choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[tokio::test]
async fn sixteen_at_once_get_what_generate_gives_each_of_them() {
    let site = Site::new(Limits { sequences_max: 6, prefill_tokens_max: 5, ..Limits::usual() });
    let model = stories();
    let prompts = ["Once upon a time", "Tom and Lily", "The dog", "One day, a very big"];
    let temperature = |i: usize| [0.0, 0.8, 1.0][i % 3];
    let top_p = |i: usize| if i.is_multiple_of(5) { 0.9 } else { 1.0 };
    let asked = |i: usize| {
        json!({
            "model": "stories", "prompt": prompts[i % 4], "seed": i, "n": 1 + i % 3, "max_tokens": 10 + 3 * i, "logprobs": i % 2,
            "temperature": temperature(i), "top_p": top_p(i), "return_token_ids": true,
        })
    };
    let answers = join_all((0..16).map(|i| site.complete(asked(i)))).await;
    for (i, answer) in answers.iter().enumerate() {
        let prompt = encode(model.tokenizer().unwrap(), prompts[i % 4]);
        let sampler = SamplerConfig {
            temperature: temperature(i) as f32,
            top_p: top_p(i) as f32,
            max_new_tokens: 10 + 3 * i,
            ..usual(&model)
        };
        let expect = generated(&model, &prompt, &sampler, i as u64, 1 + i % 3);
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), expect.len());
        for (choice, expect) in choices.iter().zip(&expect) {
            assert_eq!(ids(choice), expect.ids, "request {i}");
            // A completion goes on where its prompt ends; decoded alone, its first word would lose its space.
            let decode = |ids: &[u32]| model.tokenizer().unwrap().decode(ids, true).unwrap();
            let whole = decode(&[&prompt[..], &expect.ids].concat());
            assert_eq!(format!("{}{}", prompts[i % 4], choice["text"].as_str().unwrap()), whole);
            assert_eq!(choice["text"].as_str().unwrap().trim_start(), decode(&expect.ids).trim_start());
            assert_eq!(choice["finish_reason"], expect.finish.name());
            let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            let bits = logprobs.iter().map(|x| (x.as_f64().unwrap() as f32).to_bits());
            assert!(bits.eq(expect.logprobs.iter().map(|x| x.to_bits())), "request {i}");
        }
        let tokens: usize = expect.iter().map(|response| response.ids.len()).sum();
        let usage = json!({"prompt_tokens": prompt.len(), "completion_tokens": tokens, "total_tokens": prompt.len() + tokens});
        assert_eq!(answer["usage"], usage);
    }
    let again = site.complete(asked(7)).await;
    assert_eq!(again["choices"], answers[7]["choices"], "the same seed");
    assert_ne!(again["id"], answers[7]["id"]);
}

#[tokio::test]
async fn without_a_seed_two_answers_differ() {
    let site = Site::new(Limits::usual());
    let body = json!({"model": "stories", "prompt": "Once", "max_tokens": 30});
    let [one, two] = [site.complete(body.clone()).await, site.complete(body).await];
    assert_ne!(one["choices"], two["choices"]);
}

#[tokio::test]
async fn a_chat_goes_through_the_template() {
    let site = Site::new(Limits::usual());
    let model = chatty();
    let parts = json!([{"type": "text", "text": "a "}, {"type": "text", "text": "time"}]);
    let body = json!({
        "model": "stories", "temperature": 0, "max_completion_tokens": 12, "logprobs": true, "top_logprobs": 2, "user": "ann",
        "messages": [{"role": "developer", "content": "Once "}, {"role": "user", "content": "upon "}, {"role": "user", "content": parts}],
    });
    let answer = site.post("/v1/chat/completions", body).await.ok();
    let tokenizer = model.tokenizer().unwrap();
    let prompt = tokenizer.encode("Once upon a time", false).unwrap();
    let sampler = SamplerConfig { temperature: 0.0, max_new_tokens: 12, ..usual(&model) };
    let expect = generated(&model, &prompt, &sampler, 0, 1).remove(0);
    let choice = &answer["choices"][0];
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], tokenizer.decode(&expect.ids, true).unwrap());
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), expect.ids.len());
    for (token, (&id, &logprob)) in content.iter().zip(expect.ids.iter().zip(&expect.logprobs)) {
        let bytes: Vec<u8> =
            token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
        assert_eq!(bytes, tokenizer.token_bytes(id));
        assert_eq!(token["logprob"].as_f64().unwrap() as f32, logprob);
        // Greedy: the token is the likeliest, and the second is not likelier.
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(
            (top.len(), &top[0]["token"], &top[0]["logprob"]),
            (2, &token["token"], &token["logprob"])
        );
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
    }
}

#[tokio::test]
async fn echo_scores_the_prompt_as_a_forward_pass_does() {
    let site = Site::new(Limits { prefill_tokens_max: 4, ..Limits::usual() });
    let model = stories();
    let tokenizer = model.tokenizer().unwrap();
    let text = "Lily saw a caf\u{e9} \u{1f600}.";
    let prompt = encode(tokenizer, text);
    let decoder = Decoder::new(model.config.clone()).unwrap();
    let (batch, mut tape) = (Batch::from_rows([&prompt[..]]), Tape::default());
    let cpu = Cpu::new(1);
    decoder.forward(&cpu, &model.params, &batch, Recompute::None, &mut tape);
    let expect = decoder.logprobs(&cpu, &model.params, &mut tape, &batch.predict(0, 1), 1.0);
    // As lm-evaluation-harness asks: token ids, several prompts, one token more; or nothing but the prompt.
    for max_tokens in [0, 1] {
        let body = json!({
            "model": "stories", "prompt": [prompt, prompt[..3]], "echo": true, "max_tokens": max_tokens, "logprobs": 1, "temperature": 0,
        });
        let answer = site.complete(body).await;
        assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
        let choice = &answer["choices"][0];
        let logprobs = &choice["logprobs"];
        let list = |name: &str| logprobs[name].as_array().unwrap().clone();
        assert_eq!(list("token_logprobs").len(), prompt.len() + max_tokens);
        assert_eq!((&list("token_logprobs")[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
        for t in 0..prompt.len() - 1 {
            let got = list("token_logprobs")[t + 1].as_f64().unwrap() as f32;
            assert_eq!(got.to_bits(), expect.logprob_m[t].to_bits(), "token {t}");
            let top = list("top_logprobs")[t + 1].as_object().unwrap().clone();
            let name = list("tokens")[t + 1].as_str().unwrap().to_owned();
            let best =
                top.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap())).unwrap().0;
            assert!(top.contains_key(&name));
            assert_eq!(*best == name, expect.top_m[t], "token {t}: {top:?}");
        }
        assert!(list("tokens").iter().any(|token| token == "bytes:\\xf0"), "{:?}", list("tokens"));
        assert!(choice["text"].as_str().unwrap().starts_with(text), "{choice}");
        assert_eq!(answer["usage"]["completion_tokens"], 2 * max_tokens);
    }
    let plain =
        site.complete(json!({"model": "stories", "prompt": "Once", "echo": true, "max_tokens": 0})).await;
    assert_eq!(
        (&plain["choices"][0]["text"], &plain["choices"][0]["logprobs"]),
        (&json!("Once"), &Value::Null)
    );
}

#[tokio::test]
async fn wrong_requests_are_told_what_was_expected() {
    let site = Site::new(Limits { sequences_max: 4, kv_tokens_max: 256, ..Limits::usual() });
    let good = json!({"model": "stories", "prompt": "Once", "max_tokens": 1});
    let check = async |field: &str, value: Value, status: u16, param: &str, says: &str| {
        let mut body = good.clone();
        body[field] = value;
        let got = site.post("/v1/completions", body).await;
        let error = got.json()["error"].clone();
        assert_eq!((got.status.as_u16(), error["param"].as_str()), (status, Some(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    };
    check(
        "temperature",
        json!("hot"),
        400,
        "temperature",
        "`temperature` is \"hot\"; expected a number from 0 to 2",
    )
    .await;
    check("temperature", json!(-0.1), 400, "temperature", "expected a number from 0 to 2").await;
    check("top_p", json!(0), 400, "top_p", "above 0").await;
    check("n", json!(0), 400, "n", "expected an integer from 1").await;
    check("n", json!(5), 400, "n", "decodes 4 at once").await;
    check("max_tokens", json!(0), 400, "max_tokens", "or `echo`").await;
    check("max_tokens", json!(600), 400, "prompt", "maximum context length is 512").await;
    check("max_tokens", json!(300), 400, "max_tokens", "the server has 256").await;
    check("prompt", json!([]), 400, "prompt", "empty").await;
    check("prompt", json!([[7, 512]]), 400, "prompt", "token id 512; expected ids below 512").await;
    check("prompt", json!([1, "a"]), 400, "prompt", "expected a text, token ids").await;
    check("prompt", json!(7), 400, "prompt", "expected a text, token ids").await;
    check("logprobs", json!(21), 400, "logprobs", "0 to 20").await;
    check("stop", json!([""]), 400, "stop", "none empty").await;
    check("stream_options", json!({"include_usage": true}), 400, "stream_options", "needs `stream`").await;
    check("best_of", json!(2), 400, "best_of", "not supported").await;
    check("frequency_penalty", json!(0.5), 400, "frequency_penalty", "not supported").await;
    check("temprature", json!(1), 400, "temprature", "unrecognized request argument").await;
    check("model", json!("gpt-9"), 404, "model", "there is `stories`").await;
    let good_ones = json!({"frequency_penalty": 0, "logit_bias": {}, "best_of": 1, "user": "x", "metadata": {}, "top_k": -1, "seed": -3});
    let mut body = good.clone();
    good_ones.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    site.complete(body).await;

    let chat = |body: Value| site.post("/v1/chat/completions", body);
    let got =
        chat(json!({"model": "stories", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}))
            .await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("messages[0]")));
    let got = chat(json!({"model": "stories", "messages": []})).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("messages")));
    let got =
        chat(json!({"model": "stories", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 1}))
            .await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("top_logprobs")));
    for body in ["", "[]", "{\"model\""] {
        let got = site.send("POST", "/v1/completions", Some(KEY), body.into()).await;
        assert_eq!(got.status, StatusCode::BAD_REQUEST, "{}", got.text);
    }
}

#[tokio::test]
async fn keys_models_and_paths() {
    let site = Site::new(Limits::usual());
    for path in ["/v1/models", "/v1/models/stories", "/v1/metrics", "/v1/channels"] {
        assert_eq!(site.get(path).await.status, StatusCode::OK, "{path}");
        for key in [None, Some("nobody's")] {
            let got = site.send("GET", path, key, String::new()).await;
            assert_eq!(
                (got.status, &got.json()["error"]["code"]),
                (StatusCode::UNAUTHORIZED, &json!("invalid_api_key"))
            );
        }
    }
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/feedback", "/v1/feedback/preference"] {
        let got = site.send("POST", path, None, "{}".into()).await;
        assert_eq!(got.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let models = site.get("/v1/models").await.ok();
    assert_eq!(models["data"][0]["id"], "stories");
    assert_eq!(site.get("/v1/models/other").await.status, StatusCode::NOT_FOUND);
    let got = site.get("/v1/embeddings").await;
    assert_eq!(
        (got.status, &got.json()["error"]["message"]),
        (StatusCode::NOT_FOUND, &json!("there is no GET /v1/embeddings"))
    );
    // Everything in the document is there, and asks for a key.
    let document = site.send("GET", "/v1/openapi.json", None, String::new()).await.ok();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let got = site
                .send(&method.to_uppercase(), &path.replace("{model}", "stories"), None, "{}".into())
                .await;
            assert_eq!(got.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_model_without_a_template_has_no_chat() {
    use polity_serve::channel::{Arms, Channel};
    let model = served("plain", stories(), Limits::usual());
    let channel = Channel::new(
        "plain",
        Arms { stable: model.clone(), canary: None },
        polity_serve::monitor::Policy::usual(),
    );
    let site = Site::of(model, channel);
    let body = json!({"model": "plain", "messages": [{"role": "user", "content": "hi"}]});
    let got = site.post("/v1/chat/completions", body).await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    assert!(got.text.contains("no chat template"), "{}", got.text);
}
