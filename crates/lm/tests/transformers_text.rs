//! Tokenizers, chat templates and rotary frequencies against what Transformers 5.23 and TRL 1.16 make of the
//! same files (`golden/make_lm_golden.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polity_compute::Position;
use polity_lm::{ChatOptions, ChatTemplate, HfConfig, LmError, Tokenizer};
use serde_json::{Map, Value, json};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(here("tests/golden").join(name)).unwrap()).unwrap()
}

fn hf_config() -> HfConfig {
    HfConfig::from_value(json!({
        "model_type": "llama", "vocab_size": 600, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1
    }))
    .unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    let dir = match name {
        "bytelevel" => here("tests/golden/bytelevel"),
        _ => here("../../../shared/models").join(name),
    };
    Tokenizer::load(&dir, &hf_config()).unwrap().unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn texts_become_the_same_ids_and_come_back() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        for case in golden["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expect = ids(&case["ids"]);
            assert_eq!(t.encode(text, true).unwrap(), expect, "{name} {text:?}");
            assert_eq!(t.encode(text, false).unwrap(), ids(&case["plain"]), "{name} {text:?}");
            assert_eq!(t.decode(&expect, false).unwrap(), case["decoded"], "{name} {text:?}");
            assert_eq!(t.decode(&expect, true).unwrap(), case["skipped"], "{name} {text:?}");
            assert_eq!(t.encode_with_offsets(text, true).unwrap().ids, expect, "{name} {text:?}");
        }
    }
}

#[test]
fn special_tokens_have_their_ids() {
    let t = tokenizer("stories260k");
    assert_eq!((t.special().bos, t.special().eos, t.special().pad), (Some(1), Some(2), Some(0)));
    assert_eq!((t.prefix(), t.suffix(), t.vocab_len()), (&[1][..], &[][..], 512));
    assert!(!t.pad_is_eos());
    assert!(t.doubled_bos(&t.encode("<s>Once", true).unwrap()));
    assert!(!t.doubled_bos(&t.encode("Once", true).unwrap()));
    let t = tokenizer("bytelevel");
    assert_eq!((t.special().bos, t.special().eos, t.special().pad), (Some(1), Some(2), Some(0)));
    assert_eq!((t.eos_text(), t.vocab_len()), (Some("<|eos|>"), 600));
}

/// FNV-1a over the little-endian ids: the golden file keeps one number a row.
fn fnv(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

fn hh_rows(n: usize) -> Vec<Value> {
    use std::io::Read;
    let file = here("../../../shared/data/preferences/hh_harmless_base_test.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().take(n).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// 512 rows for each tokenizer: the ids are Transformers', and the completion starts where TRL lets it start.
#[test]
fn prompts_and_completions_are_trls() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        let mut expect = golden["pairs"].as_array().unwrap().iter();
        for (i, row) in hh_rows(256).iter().enumerate() {
            for side in ["chosen", "rejected"] {
                let text = row[side].as_str().unwrap();
                let cut = text.rfind("\n\nAssistant:").unwrap() + "\n\nAssistant:".len();
                let pair = t.encode_pair(&text[..cut], &text[cut..], true).unwrap();
                let expect = expect.next().unwrap();
                assert_eq!(expect[0], pair.ids.len(), "{name} row {i} {side}");
                assert_eq!(expect[1], fnv(&pair.ids), "{name} row {i} {side}");
                assert_eq!(expect[2], pair.first, "{name} row {i} {side}: first token of the completion");
                assert_eq!(pair.ids.last(), t.special().eos.as_ref(), "{name} row {i} {side}: it ends");
            }
        }
    }
}

/// Where a cut goes through a word, the token on it belongs to the completion. TRL starts the completion no
/// later: it also gives it tokens before the cut, where a merge across it changed them.
#[test]
fn a_token_on_the_boundary_belongs_to_the_completion() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        let mut expect = golden["cuts"].as_array().unwrap().iter();
        let (mut earlier, mut straddling, mut all) = (0, 0, 0);
        for row in hh_rows(64) {
            let text = row["chosen"].as_str().unwrap();
            for _ in 0..3 {
                let expect = expect.next().unwrap();
                let chars = expect[0].as_u64().unwrap() as usize;
                let cut = text.char_indices().nth(chars).unwrap().0;
                let pair = t.encode_pair(&text[..cut], &text[cut..], false).unwrap();
                let offsets = t.encode_with_offsets(text, true).unwrap().offsets;
                assert!(offsets[pair.first].end > cut && offsets[pair.first - 1].end <= cut);
                let trl = expect[1].as_u64().unwrap() as usize;
                assert!(trl <= pair.first, "{name}: TRL {trl}, here {}", pair.first);
                earlier += usize::from(trl < pair.first);
                straddling += usize::from(offsets[pair.first].start < cut);
                all += 1;
            }
        }
        println!("{name}: of {all} cuts {straddling} go through a token, {earlier} start earlier in TRL");
        assert!(straddling > all / 4, "{name}: the cuts test something");
    }
}

#[test]
fn an_empty_completion_trains_nothing_but_its_end() {
    let t = tokenizer("stories260k");
    let pair = t.encode_pair("Once", "", false).unwrap();
    assert_eq!(pair.first, pair.ids.len());
    let pair = t.encode_pair("Once", "", true).unwrap();
    assert_eq!(&pair.ids[pair.first..], [2]);
    // An EOS that is there is not doubled.
    let pair = t.encode_pair("Once", " upon</s>", true).unwrap();
    assert_eq!(pair.ids.iter().filter(|&&id| id == 2).count(), 1);
}

fn special_texts(t: &Tokenizer) -> BTreeMap<String, String> {
    t.special_texts().clone()
}

#[test]
fn templates_render_as_in_transformers() {
    let golden = golden("chat.json");
    let now = golden["now_seconds"].as_i64();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let label = format!("{name}/{}/{}", case["chat"], case["add_generation_prompt"]);
        let source = golden["templates"][name].as_str().unwrap();
        let texts = special_texts(&tokenizer("bytelevel"));
        let template =
            ChatTemplate::new(Path::new("chat_template.jinja"), &[("default".into(), source.into())], &texts)
                .unwrap_or_else(|e| panic!("{label}: {e}"));
        assert_eq!(template.marks_generation(), name.starts_with("marked"), "{label}");
        let options = ChatOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            tools: case["tools"].as_array().map(|_| &case["tools"]),
            variables: case["variables"].as_object(),
            now,
        };
        let messages = case["messages"].as_array().unwrap();
        match template.render(messages, &options) {
            Ok(rendered) => {
                assert_eq!(rendered.text, case["text"], "{label}");
                if let Some(spans) = case["spans"].as_array() {
                    let ours: Vec<Value> =
                        rendered.trainable.iter().map(|s| json!([s.start, s.end])).collect();
                    assert_eq!(&ours, spans, "{label}");
                }
            }
            Err(LmError::Template { message, line, .. }) => {
                assert_eq!(case["error"], message, "{label}");
                assert!(line.is_some(), "{label}");
            }
            Err(e) => panic!("{label}: {e}"),
        }
        for tokens in ["bytelevel", "stories260k"] {
            if case.get(tokens).is_none() {
                continue;
            }
            let encoded = tokenizer(tokens).encode_chat(&template, messages, &options).unwrap();
            assert_eq!(encoded.ids, ids(&case[tokens]["ids"]), "{label} {tokens}");
            let mask: Vec<u32> = encoded.trainable.iter().map(|&t| u32::from(t)).collect();
            assert_eq!(mask, ids(&case[tokens]["mask"]), "{label} {tokens}");
        }
        checked += 1;
    }
    assert!(checked > 90, "{checked} cases");
}

#[test]
fn without_a_clock_a_template_uses_its_own_date() {
    let golden = golden("chat.json");
    let source = golden["templates"]["llama3"].as_str().unwrap();
    let texts = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let template = ChatTemplate::new(Path::new("t"), &[("default".into(), source.into())], &texts).unwrap();
    let messages = [json!({"role": "user", "content": "hi"})];
    let text = template.render(&messages, &ChatOptions::PROMPT).unwrap().text;
    assert!(text.contains("Today Date: 26 Jul 2024"), "{text}");
}

#[test]
fn a_stream_gives_the_same_text_in_whole_characters() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        for case in golden["texts"].as_array().unwrap() {
            for skip in [false, true] {
                let ids = ids(&case["ids"]);
                let mut stream = t.stream(skip);
                let mut text = String::new();
                for &id in &ids {
                    let piece = stream.push(id).unwrap();
                    assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{name}: {piece:?}");
                    text.push_str(&piece);
                }
                text.push_str(&stream.finish().unwrap());
                assert_eq!(text, t.decode(&ids, skip).unwrap(), "{name} {case}");
            }
        }
    }
}

/// The bytes of a text's tokens, one after the other, are the text, where its characters are cut too.
#[test]
fn the_bytes_of_tokens_are_those_of_the_text() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        for case in golden["texts"].as_array().unwrap() {
            let plain = ids(&case["plain"]);
            let bytes: Vec<u8> = plain.iter().flat_map(|&id| t.token_bytes(id)).collect();
            let text = String::from_utf8(bytes).unwrap();
            // SentencePiece begins a text with a space that decoding takes away.
            let decoded = t.decode(&plain, false).unwrap();
            let stripped = if name == "bytelevel" { None } else { text.strip_prefix(' ') };
            assert_eq!(stripped.unwrap_or(&text), decoded, "{name} {case}");
        }
    }
    let t = tokenizer("stories260k");
    assert_eq!(t.token_bytes(t.token_id("<0x80>").unwrap()), [0x80]);
    assert!(t.token_bytes(u32::MAX).is_empty());
}

#[test]
fn a_stream_goes_on_where_a_text_ends() {
    for (name, golden) in golden("tokens.json").as_object().unwrap() {
        let t = tokenizer(name);
        for case in golden["texts"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let whole = t.decode(&ids, true).unwrap();
            for cut in 1..ids.len() {
                let before = t.decode(&ids[..cut], true).unwrap();
                let Some(expect) = whole
                    .strip_prefix(&before)
                    .filter(|_| !before.is_empty() && !before.ends_with('\u{fffd}'))
                else {
                    continue;
                };
                let mut stream = t.stream_after(&ids[..cut], true);
                let mut text: String = ids[cut..].iter().map(|&id| stream.push(id).unwrap()).collect();
                text.push_str(&stream.finish().unwrap());
                assert_eq!(text, expect, "{name} {case} after {cut}");
            }
        }
    }
}

#[test]
fn a_stream_gives_up_on_bytes_that_are_no_text() {
    let t = tokenizer("stories260k");
    // A lone continuation byte, again and again.
    let byte = t.token_id("<0x80>").unwrap();
    let mut stream = t.stream(false);
    let pieces: Vec<String> = (0..40).map(|_| stream.push(byte).unwrap()).collect();
    assert!(pieces.iter().any(|piece| !piece.is_empty()), "nothing after 40 tokens");
    // And what follows is text again.
    let mut rest = String::new();
    for id in t.encode("Once upon", false).unwrap() {
        rest.push_str(&stream.push(id).unwrap());
    }
    assert!(rest.ends_with("Once upon"), "{rest:?}");
}

/// Frequencies within 2 units in the last place: PyTorch's vectorised power is that exact.
#[test]
fn rotary_frequencies_are_transformers() {
    let golden = golden("rope.json");
    let (mut off, mut all) = (0, 0);
    for case in golden["rope"].as_array().unwrap() {
        let config = HfConfig::from_value(case["config"].clone()).unwrap().decoder().unwrap();
        let Position::Rotary { inv_freq } = config.position else { panic!("{case}") };
        let expect = case["bits"].as_array().unwrap();
        assert_eq!(inv_freq.len(), expect.len(), "{}", case["config"]);
        for (i, (ours, theirs)) in inv_freq.iter().zip(expect).enumerate() {
            let distance = i64::from(ours.to_bits()) - theirs.as_i64().unwrap();
            assert!(distance.abs() <= 2, "{}: frequency {i}: {distance} units off", case["config"]);
            off += usize::from(distance != 0);
            all += 1;
        }
    }
    println!("{off} of {all} frequencies are not the same bits");
    assert!(off * 20 < all, "{off} of {all} differ");
}

#[test]
fn windows_are_transformers() {
    for case in golden("rope.json")["windows"].as_array().unwrap() {
        let config = HfConfig::from_value(case["config"].clone()).unwrap().decoder().unwrap();
        let ours: Vec<Value> = config.window_l.iter().map(|w| json!(w)).collect();
        assert_eq!(&ours, case["windows"].as_array().unwrap(), "{}", case["config"]);
    }
}

/// What is rendered around a conversation when its end is the completion.
#[test]
fn a_chat_pair_starts_after_the_generation_prompt() {
    let golden = golden("chat.json");
    let t = tokenizer("bytelevel");
    let template = |source: &str| {
        let named = [("default".to_owned(), source.to_owned())];
        ChatTemplate::new(Path::new("t"), &named, &special_texts(&t)).unwrap()
    };
    let prompt = [json!({"role": "user", "content": "Speak."})];
    let completion = [json!({"role": "assistant", "content": "So be it."})];
    let source = golden["templates"]["chatml"].as_str().unwrap();
    let pair = t.encode_chat_pair(&template(source), &prompt, &completion, &ChatOptions::WHOLE).unwrap();
    assert_eq!(t.decode(&pair.ids[pair.first..], false).unwrap(), "So be it.<|im_end|>\n");
    assert!(!pair.prompt_differs);

    // A template whose prompt ends in something that the whole does not have.
    let thinking = source
        .replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\nThink:' }}{% endif %}");
    assert_ne!(thinking, source);
    let pair = t.encode_chat_pair(&template(&thinking), &prompt, &completion, &ChatOptions::WHOLE).unwrap();
    assert_eq!(t.decode(&pair.ids[pair.first..], false).unwrap(), "So be it.<|im_end|>\n");
    assert!(pair.prompt_differs);
}

#[test]
fn marks_survive_texts_that_hold_noncharacters() {
    let source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}";
    let named = [("default".to_owned(), source.to_owned())];
    let template = ChatTemplate::new(Path::new("t"), &named, &BTreeMap::new()).unwrap();
    let odd: String = ('\u{FDD0}'..='\u{FDED}').collect();
    let messages = [json!({"role": "user", "content": odd}), json!({"role": "user", "content": "b"})];
    let rendered = template.render(&messages, &ChatOptions::WHOLE).unwrap();
    assert_eq!(rendered.text, format!("{odd};b;"));
    assert_eq!(rendered.trainable, [0..odd.len(), odd.len() + 1..odd.len() + 2]);
    // With one more there is nothing left to mark with.
    let full: String = ('\u{FDD0}'..='\u{FDEF}').collect();
    let error =
        template.render(&[json!({"role": "user", "content": full})], &ChatOptions::WHOLE).unwrap_err();
    assert!(error.to_string().contains("U+FDD0"), "{error}");
}

#[test]
fn templates_by_name_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let texts = BTreeMap::new();
    let config = |template: Value| {
        let text = json!({ "chat_template": template }).to_string();
        std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
        ChatTemplate::load(dir.path(), &texts)
    };
    let messages = [json!({"role": "user", "content": "x"})];
    let render = |template: &ChatTemplate, tools: Option<&Value>| {
        template.render(&messages, &ChatOptions { tools, ..ChatOptions::WHOLE }).unwrap().text
    };
    assert!(config(Value::Null).unwrap().is_none());
    assert_eq!(render(&config(json!("one")).unwrap().unwrap(), None), "one");
    let list = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
    let template = config(list).unwrap().unwrap();
    assert_eq!(render(&template, None), "plain");
    assert_eq!(render(&template, Some(&json!([]))), "tools");
    let by_name = config(json!({"default": "mapped"})).unwrap().unwrap();
    assert_eq!(render(&by_name, None), "mapped");
    for bad in [json!([{"name": "other", "template": "t"}]), json!([{"name": "default"}]), json!(3)] {
        let error = config(bad).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: `chat_template`"), "{error}");
    }
    let error = config(json!("{% for %}")).unwrap_err();
    assert!(matches!(&error, LmError::Template { line: Some(1), .. }), "{error}");
    // The file of its own wins.
    config(json!("config")).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(render(&ChatTemplate::load(dir.path(), &texts).unwrap().unwrap(), None), "file");
}

#[test]
fn variables_reach_the_template() {
    let named = [("default".to_owned(), "{{ thinking }}{{ messages[0].thinking }}".to_owned())];
    let template = ChatTemplate::new(Path::new("t"), &named, &BTreeMap::new()).unwrap();
    let variables = Map::from_iter([("thinking".to_owned(), json!("off"))]);
    let messages = [json!({"role": "assistant", "reasoning_content": "!", "content": null})];
    let options = ChatOptions { variables: Some(&variables), ..ChatOptions::WHOLE };
    assert_eq!(template.render(&messages, &options).unwrap().text, "off!");
    let error = template.render(&[], &options).unwrap_err();
    assert!(error.to_string().contains("no messages"), "{error}");
    let error = template.render(&[json!("hi")], &options).unwrap_err();
    assert!(error.to_string().contains("message 0 is not an object"), "{error}");
}
