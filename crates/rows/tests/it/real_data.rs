//! Real files, read where they lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polity_rows::{
    Flag, Format, Pair, PreferenceRow, PromptFrom, RowsError, Side, Text, UnpairedRow, open, read,
};

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path)
}

fn transcripts() -> Vec<PreferenceRow> {
    read(shared("preferences/hh_harmless_base_test.jsonl.gz")).unwrap()
}

#[test]
fn hh_transcripts_share_their_prompts() {
    let rows = transcripts();
    assert_eq!(rows.len(), 2312);
    let mut flags: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for row in &rows {
        assert_eq!(row.prompt_from, PromptFrom::Transcript);
        for flag in &row.info.flags {
            flags.entry(flag.to_string()).or_default().push(row.info.index);
        }
    }
    // Counted independently in Python: 2307 pairs differ in their last turn only, in the other five
    // one side has a further turn of the assistant's, and four chosen responses are empty.
    let expect = [
        (Flag::EmptyResponse(Side::Chosen).to_string(), vec![86, 516, 925, 1103]),
        (Flag::SeveralTurns(Side::Chosen).to_string(), vec![1254, 1688, 1952, 2036]),
        (Flag::SeveralTurns(Side::Rejected).to_string(), vec![1950]),
    ];
    assert_eq!(flags, BTreeMap::from(expect));

    for row in &rows {
        let Pair::Text {
            prompt: Text::Plain(prompt),
            chosen: Text::Plain(chosen),
            rejected: Text::Plain(rejected),
        } = &row.pair
        else {
            panic!("row {}: {row:?}", row.info.index)
        };
        assert!(
            prompt.starts_with("\n\nHuman:") && prompt.ends_with("\n\nAssistant:"),
            "row {}",
            row.info.index
        );
        assert_ne!(chosen, rejected);
        for response in [chosen, rejected] {
            assert!(response.is_empty() || response.starts_with(' '), "row {}: {response:?}", row.info.index);
        }
    }
}

#[test]
fn hh_transcripts_are_put_together_again() {
    // What was split must join to the file's own text, byte for byte.
    let rows = transcripts();
    let raw = open(shared("preferences/hh_harmless_base_test.jsonl.gz")).unwrap();
    assert_eq!(raw.format(), Format::Jsonl);
    for (raw, row) in raw.zip(&rows) {
        let raw = raw.unwrap();
        let Pair::Text {
            prompt: Text::Plain(prompt),
            chosen: Text::Plain(chosen),
            rejected: Text::Plain(rejected),
        } = &row.pair
        else {
            panic!("row {}: {row:?}", row.info.index)
        };
        assert_eq!(raw.value["chosen"], format!("{prompt}{chosen}"));
        assert_eq!(raw.value["rejected"], format!("{prompt}{rejected}"));
        assert_eq!((raw.index + 1, raw.line), (row.info.index + 1, row.info.line));
    }
}

#[test]
fn hh_transcripts_become_messages() {
    let rows: Vec<PreferenceRow> =
        transcripts().into_iter().map(PreferenceRow::transcript_to_messages).collect();
    let mut messages = 0;
    for row in &rows {
        let Pair::Text { prompt: Text::Messages(prompt), chosen: Text::Messages(chosen), .. } = &row.pair
        else {
            panic!("row {}: {row:?}", row.info.index)
        };
        assert_eq!((prompt[0].role.as_str(), chosen[0].role.as_str()), ("user", "assistant"));
        messages += prompt.len() + chosen.len();
    }
    // Python: the markers of all 2312 chosen transcripts.
    assert_eq!(messages, MESSAGES_IN_CHOSEN);
}

const MESSAGES_IN_CHOSEN: usize = 11520;

#[test]
fn gsm8k_reads_as_objects_and_explains_its_keys() {
    let path = shared("sft/gsm8k_test.jsonl");
    let rows: Vec<_> = open(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), 1319);
    assert_eq!(rows[1318].line, Some(1319));
    for row in &rows {
        assert_eq!(row.value.keys().collect::<Vec<_>>(), ["question", "answer"]);
        assert!(row.value["answer"].as_str().unwrap().contains("#### "));
    }
    let error = read::<UnpairedRow>(&path).unwrap_err();
    assert!(matches!(&error, RowsError::Keys { .. }));
    assert!(
        error.to_string().ends_with("did you mean `prompt` for `question`, `completion` for `answer`?"),
        "{error}"
    );
}

#[test]
fn other_real_files_are_read_or_refused_in_words() {
    let count = |path: &str| open(shared(path)).unwrap().map(Result::unwrap).count();
    assert_eq!(count("preferences/pandalm_testset_v1.json"), 999);
    assert_eq!(count("preferences/oasst_en_trees.jsonl"), 99);
    assert_eq!(count("annotators/mtbench_human_votes.jsonl"), 3355);
    let refused = |path: &str| open(shared(path)).err().unwrap().to_string();
    assert!(
        refused("annotators/tulu1_human_eval.xlsx")
            .contains("found a zip archive (a spreadsheet is one too)")
    );
    assert!(refused("safety/xstest_prompts.csv").contains("found CSV"));
    assert!(refused("text/tinyshakespeare.txt").contains("begins with \"First Citizen:"));
}
