//! What the keys of a row come to mean.

use std::path::Path;

use polity_rows::{
    Completion, CompletionRow, Flag, FromRow, Message, Pair, PreferenceRow, Prompt, PromptFrom, PromptRow,
    Row, RowsError, Side, Text, UnpairedRow,
};
use serde_json::{Value, json};

fn try_read<T: FromRow>(value: Value) -> Result<T, RowsError> {
    let Value::Object(value) = value else { panic!("a row is an object") };
    T::from_row(Row { index: 4, line: Some(5), value }, Path::new("f.jsonl"))
}

#[track_caller]
fn read<T: FromRow>(value: Value) -> T {
    try_read(value).unwrap()
}

#[track_caller]
fn refused<T: FromRow + std::fmt::Debug>(value: Value, expect: &str) {
    let error = try_read::<T>(value).unwrap_err().to_string();
    assert!(error.starts_with("f.jsonl, line 5: ") && error.contains(expect), "{error}");
}

fn plain(text: &str) -> Text {
    Text::Plain(text.to_owned())
}

fn said(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

#[test]
fn prompts() {
    let prompt = |value| read::<PromptRow>(value).prompt;
    assert_eq!(prompt(json!({"prompt": "hi"})), Prompt::Text(plain("hi")));
    let messages = Prompt::Text(Text::Messages(said(&[("user", "hi")])));
    assert_eq!(prompt(json!({"prompt": [user("hi")]})), messages);
    assert_eq!(prompt(json!({"messages": [user("hi")]})), messages);
    assert_eq!(prompt(json!({"prompt_ids": [1, 4294967295_u32]})), Prompt::Ids(vec![1, u32::MAX]));
    assert_eq!(prompt(json!({"ids": [7]})), Prompt::Ids(vec![7]));
    // `ids` next to a prompt may be anyone's, such as a sampled response's.
    assert_eq!(prompt(json!({"ids": [7], "prompt": "hi"})), Prompt::Text(plain("hi")));

    let row: PromptRow = read(json!({"id": "a", "prompt": "hi", "note": null, "category": "tone"}));
    assert_eq!((row.info.index, row.info.line), (4, Some(5)));
    assert_eq!(Value::Object(row.info.extra), json!({"id": "a", "category": "tone"}));
    assert_eq!(row.info.flags, []);

    let flags = |value| read::<PromptRow>(value).info.flags;
    assert_eq!(flags(json!({"prompt": ""})), [Flag::EmptyPrompt]);
    assert_eq!(flags(json!({"ids": []})), [Flag::EmptyPrompt]);
    assert_eq!(flags(json!({"messages": [user("hi"), assistant("Well,")]})), [Flag::PromptEndsWithAssistant]);

    refused::<PromptRow>(
        json!({"messages": "hi"}),
        "`messages` is the text \"hi\"; expected a list of one or more",
    );
    refused::<PromptRow>(json!({"prompt": {"text": "hi"}}), "`prompt` is an object with the key `text`");
}

#[test]
fn completions() {
    let completion = |value| read::<CompletionRow>(value).completion;
    assert_eq!(
        completion(json!({"prompt": "p", "completion": "c"})),
        Completion::Pair { prompt: plain("p"), completion: plain("c") }
    );
    assert_eq!(
        completion(json!({"prompt": [user("p")], "completion": [assistant("c")]})),
        Completion::Pair {
            prompt: Text::Messages(said(&[("user", "p")])),
            completion: Text::Messages(said(&[("assistant", "c")]))
        }
    );
    assert_eq!(
        completion(json!({"messages": [user("p"), assistant("c")]})),
        Completion::Messages(said(&[("user", "p"), ("assistant", "c")]))
    );
    assert_eq!(completion(json!({"text": "t"})), Completion::Text("t".to_owned()));
    assert_eq!(
        completion(json!({"prompt_ids": [1], "completion_ids": [2, 3], "text": "t"})),
        Completion::Ids { prompt_ids: vec![1], completion_ids: vec![2, 3] }
    );

    let flags = |value| read::<CompletionRow>(value).info.flags;
    let empty = [Flag::EmptyResponse(Side::Completion)];
    assert_eq!(flags(json!({"prompt": "p", "completion": " \n"})), empty);
    assert_eq!(flags(json!({"text": ""})), empty);
    assert_eq!(flags(json!({"messages": [user("p"), assistant("")]})), empty);
    assert_eq!(flags(json!({"prompt_ids": [1], "completion_ids": []})), empty);
    assert_eq!(
        flags(json!({"prompt": [user("p")], "completion": [assistant("a"), user("b"), assistant("c")]})),
        [Flag::SeveralTurns(Side::Completion)]
    );
    assert_eq!(
        flags(json!({"prompt": "the prompt", "completion": "the prompt and more"})),
        [Flag::PromptRepeated]
    );
    assert_eq!(flags(json!({"prompt": "I", "completion": "I think"})), []);

    refused::<CompletionRow>(
        json!({"messages": [user("p")]}),
        "`messages` is a conversation that ends with a message of role user",
    );
    refused::<CompletionRow>(
        json!({"prompt": "p", "completion": [assistant("c")]}),
        "`completion` is a list of messages; expected plain text, as `prompt` is",
    );
    refused::<CompletionRow>(json!({"text": [assistant("c")]}), "`text` is a list of 1; expected text");
    refused::<CompletionRow>(json!({"prompt": "p"}), "`completion` is missing");
}

#[test]
fn preferences_with_a_prompt() {
    let row: PreferenceRow = read(
        json!({"prompt": "p", "chosen": "c", "rejected": "r", "margin": -1, "weight": 0, "label": 0.75, "category": "tone"}),
    );
    assert_eq!(row.pair, Pair::Text { prompt: plain("p"), chosen: plain("c"), rejected: plain("r") });
    assert_eq!((row.margin, row.weight, row.label), (Some(-1.0), Some(0.0), Some(0.75)));
    assert_eq!(row.prompt_from, PromptFrom::Key);
    assert_eq!(Value::Object(row.info.extra), json!({"category": "tone"}));

    let row: PreferenceRow =
        read(json!({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [], "margin": null}));
    assert_eq!(row.pair, Pair::Ids { prompt_ids: vec![1], chosen_ids: vec![2], rejected_ids: vec![] });
    assert_eq!((row.margin, row.info.flags), (None, vec![Flag::EmptyResponse(Side::Rejected)]));

    let flags = |value| read::<PreferenceRow>(value).info.flags;
    assert_eq!(flags(json!({"prompt": "p", "chosen": "c", "rejected": "c"})), [Flag::IdenticalResponses]);
    assert_eq!(
        flags(json!({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2]})),
        [Flag::IdenticalResponses]
    );
    assert_eq!(
        flags(json!({"prompt": "", "chosen": "", "rejected": "r"})),
        [Flag::EmptyPrompt, Flag::EmptyResponse(Side::Chosen)]
    );
    assert_eq!(
        flags(json!({"prompt": "the prompt", "chosen": "the prompt, c", "rejected": "the prompt, r"})),
        [Flag::PromptRepeated]
    );
    // Only one side repeats it: that may be an answer that quotes.
    assert_eq!(flags(json!({"prompt": "the prompt", "chosen": "the prompt, c", "rejected": "r"})), []);
    assert_eq!(
        flags(json!({"prompt": "p", "chosen": "c", "rejected": "r", "margn": 1})),
        [Flag::LikelyMisspelt("margin")]
    );
    let ids =
        json!({"prompt_ids": [1, 2, 3, 4], "chosen_ids": [1, 2, 3, 4, 5], "rejected_ids": [1, 2, 3, 4, 6]});
    assert_eq!(flags(ids), [Flag::PromptRepeated]);

    let broken = |chosen: &str, rejected: &str| flags(json!({"chosen": chosen, "rejected": rejected}));
    let (asked, whole) = ("\n\nHuman: Hi.", "\n\nHuman: Hi.\n\nAssistant: Hello.");
    assert_eq!(broken(asked, "\n\nHuman: Ho."), [Flag::BrokenTranscript]);
    assert!(broken(whole, "Hello.").contains(&Flag::BrokenTranscript));
    assert_eq!(broken(whole, "\n\nHuman: Hi.\n\nAssistant: Ho."), []);

    let with = |key: &str, value: Value| json!({"prompt": "p", "chosen": "c", "rejected": "r", key: value});
    refused::<PreferenceRow>(
        with("label", json!(-0.01)),
        "`label` is the number -0.01; expected a number from 0 to 1",
    );
    refused::<PreferenceRow>(with("weight", json!("1")), "`weight` is the text \"1\"");
    refused::<PreferenceRow>(with("margin", json!([1])), "`margin` is a list of 1; expected a finite number");
    for side in ["chosen", "rejected"] {
        let mut row =
            json!({"prompt": [user("p")], "chosen": [assistant("c")], "rejected": [assistant("r")]});
        row[side] = json!([assistant("c"), user("more?")]);
        refused::<PreferenceRow>(
            row,
            &format!("`{side}` is a conversation that ends with a message of role user"),
        );
    }
}

#[test]
fn preferences_whose_prompt_is_implicit() {
    let check = |row: Value, expect: [&str; 3]| {
        let row: PreferenceRow = read(row);
        let [prompt, chosen, rejected] = expect.map(plain);
        assert_eq!(
            (row.pair, row.prompt_from),
            (Pair::Text { prompt, chosen, rejected }, PromptFrom::CommonPrefix)
        );
    };
    check(
        json!({"chosen": "The sky is blue", "rejected": "The sky is green"}),
        ["The sky is", " blue", " green"],
    );
    check(json!({"chosen": "a b", "rejected": "a c", "prompt": null}), ["a", " b", " c"]);
    assert_eq!(
        read::<PreferenceRow>(json!({"chosen": "x", "rejected": "y"})).info.flags,
        [Flag::EmptyPrompt]
    );

    let conversations =
        json!({"chosen": [user("p"), assistant("c")], "rejected": [user("p"), assistant("r")]});
    let expect = Pair::Text {
        prompt: Text::Messages(said(&[("user", "p")])),
        chosen: Text::Messages(said(&[("assistant", "c")])),
        rejected: Text::Messages(said(&[("assistant", "r")])),
    };
    let row: PreferenceRow = read(conversations.clone());
    assert_eq!((&row.pair, row.prompt_from), (&expect, PromptFrom::CommonPrefix));

    // A text that only repeats the question, as UltraFeedback has it, gives way; another text is a
    // contradiction.
    let mut repeated = conversations.clone();
    repeated["prompt"] = json!("p ");
    let row: PreferenceRow = read(repeated);
    assert_eq!((row.pair, row.prompt_from), (expect, PromptFrom::CommonPrefix));
    let mut other = conversations.clone();
    other["prompt"] = json!("q");
    refused::<PreferenceRow>(other, "`chosen` is a list of messages; expected plain text, as `prompt` is");

    // The whole conversation beside its prompt as messages: nothing is cut, the repetition is remarked on.
    let mut whole = conversations.clone();
    whole["prompt"] = json!([user("p")]);
    assert_eq!(
        read::<PreferenceRow>(whole).info.flags,
        [Flag::SeveralTurns(Side::Chosen), Flag::SeveralTurns(Side::Rejected), Flag::PromptRepeated]
    );
    refused::<PreferenceRow>(
        json!({"chosen": [assistant("c")], "rejected": [assistant("c")]}),
        "or a `prompt` of its own",
    );
}

#[test]
fn transcripts() {
    let start = "\n\nHuman: q\n\nAssistant:";
    let row: PreferenceRow =
        read(json!({"chosen": format!("{start} I do."), "rejected": format!("{start} I don't.")}));
    assert_eq!(row.prompt_from, PromptFrom::Transcript);
    assert_eq!(
        row.pair,
        Pair::Text { prompt: plain(start), chosen: plain(" I do."), rejected: plain(" I don't.") }
    );
    assert_eq!(row.info.flags, []);
    let messages = row.transcript_to_messages();
    assert_eq!(
        messages.pair,
        Pair::Text {
            prompt: Text::Messages(said(&[("user", "q")])),
            chosen: Text::Messages(said(&[("assistant", "I do.")])),
            rejected: Text::Messages(said(&[("assistant", "I don't.")])),
        }
    );
    assert_eq!(messages.prompt_from, PromptFrom::Transcript);

    let early =
        json!({"chosen": format!("{start} a\n\nHuman: r\n\nAssistant: c"), "rejected": format!("{start} b")});
    let row: PreferenceRow = read(early);
    assert_eq!(row.info.flags, [Flag::SeveralTurns(Side::Chosen)]);
    let Pair::Text { prompt: Text::Plain(prompt), .. } = &row.pair else { panic!("{row:?}") };
    assert_eq!(prompt, start);

    let row: PreferenceRow = read(json!({"prompt": "p", "chosen": "c", "rejected": "r"}));
    assert_eq!(row.clone().transcript_to_messages(), row);
}

#[test]
fn unpaired() {
    let row: UnpairedRow = read(json!({"prompt": "p", "completion": "c", "label": false, "id": 3}));
    assert_eq!((row.prompt, row.completion, row.label), (plain("p"), plain("c"), false));
    assert_eq!(Value::Object(row.info.extra), json!({"id": 3}));
    assert!(read::<UnpairedRow>(json!({"prompt": "p", "completion": "c", "label": 1})).label);
    let row: UnpairedRow =
        read(json!({"prompt": [user("p")], "completion": [assistant(" ")], "label": true}));
    assert_eq!(row.info.flags, [Flag::EmptyResponse(Side::Completion)]);

    for label in [json!(0.5), json!(2), json!(-1), json!("true"), json!([true])] {
        refused::<UnpairedRow>(
            json!({"prompt": "p", "completion": "c", "label": label}),
            "expected true or false (or 1 or 0)",
        );
    }
    refused::<UnpairedRow>(json!({"prompt": "p", "completion": "c", "label": null}), "`label` is missing");
    refused::<UnpairedRow>(
        json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
        "this is a preference row",
    );
}

#[test]
fn pairs_serve_other_trainers() {
    let row = || -> PreferenceRow {
        read(json!({"prompt": "", "chosen": "", "rejected": "", "id": 9, "margn": 1}))
    };
    let prompt = row().into_prompt();
    assert_eq!(
        (&prompt.prompt, &prompt.info.flags[..]),
        (&Prompt::Text(plain("")), &[Flag::EmptyPrompt][..])
    );
    assert_eq!((prompt.info.index, prompt.info.extra["id"].clone()), (4, json!(9)));
    let transcripts = json!({"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAssistant: What?"});
    assert_eq!(read::<PromptRow>(transcripts).prompt, Prompt::Text(plain("\n\nHuman: Hi.\n\nAssistant:")));
    let chosen = row().into_chosen();
    assert_eq!(chosen.completion, Completion::Pair { prompt: plain(""), completion: plain("") });
    assert_eq!(chosen.info.flags, [Flag::EmptyPrompt, Flag::EmptyResponse(Side::Completion)]);

    let row =
        || -> PreferenceRow { read(json!({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]})) };
    assert_eq!(row().into_prompt().prompt, Prompt::Ids(vec![1]));
    assert_eq!(
        row().into_chosen().completion,
        Completion::Ids { prompt_ids: vec![1], completion_ids: vec![2] }
    );
}

#[test]
fn flags_have_names() {
    assert_eq!(Flag::EmptyResponse(Side::Rejected).to_string(), "empty response (rejected)");
    assert_eq!(Flag::SeveralTurns(Side::Chosen).to_string(), "several turns in response (chosen)");
    assert_eq!(Flag::LikelyMisspelt("margin").to_string(), "unused key that looks like `margin`");
}
