//! `polity chat`, through pipes.

use crate::support::{ModelCopy, Run, polity_with, stories};

fn chat(model: &str, lines: &str, more: &[&str]) -> Run {
    let args = ["chat", model, "--set", "temperature=0", "--set", "max_new_tokens=12"].into_iter();
    polity_with(args.chain(more.iter().copied()), lines.as_bytes())
}

#[test]
fn a_model_without_a_template_continues_text_and_says_so_once() {
    let run = chat(&stories(), "Once upon a time\nThe end\n", &[]).ok();
    assert!(run.stdout.starts_with(", there was a little girl named Lily"), "{}", run.stdout);
    assert_eq!(run.stdout.lines().count(), 2);
    assert_eq!(run.stderr.matches("no chat template").count(), 1);
}

#[test]
fn turns_see_the_turns_before_until_a_reset() {
    let model = ModelCopy::stories().with_template();
    let answers = |lines: &str| -> Vec<String> {
        let run = chat(&model.path(), lines, &["--json"]).ok();
        assert_eq!(run.stderr, "");
        run.rows().iter().map(|row| row["content"].as_str().unwrap().to_owned()).collect()
    };
    let once = answers("Once upon a time\n");
    let twice = answers("Once upon a time\nOnce upon a time\n");
    let reset = answers("Once upon a time\n/reset\nOnce upon a time\n/exit\nnot read\n");
    assert_eq!(twice[0], once[0]);
    assert_eq!(reset, [once[0].clone(), once[0].clone()]);
    let tokens = |lines: &str| {
        let rows = chat(&model.path(), lines, &["--json"]).ok().rows();
        rows.last().unwrap()["prompt_tokens"].as_u64().unwrap()
    };
    assert!(tokens("Hi\nHi\n") > 2 * tokens("Hi\n"), "the second prompt holds the first turn");
}

#[test]
fn streamed_text_is_the_whole_text() {
    let model = ModelCopy::stories().with_template();
    let lines = "Once upon a time\nLily\n";
    let streamed = chat(&model.path(), lines, &[]).ok().stdout;
    let whole = chat(&model.path(), lines, &["--json"]).ok().rows();
    let whole: String = whole.iter().map(|row| format!("{}\n", row["content"].as_str().unwrap())).collect();
    assert_eq!(streamed, whole);
    assert!(!chat(&model.path(), lines, &["--system", "Say no."]).ok().stdout.is_empty());
}

#[test]
fn a_stop_text_is_not_shown() {
    let run = chat(&stories(), "Once upon a time\n", &["--set", "stop= girl"]).ok();
    assert_eq!(run.stdout, ", there was a little\n");
}

#[test]
fn what_cannot_be_answered_is_an_error_in_a_script() {
    let long = "word ".repeat(600);
    let run = chat(&stories(), &long, &[]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("the model has 512 positions"), "{}", run.stderr);
    let run = chat(&stories(), "Hi\n", &["--system", "x"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("--system needs a chat template"));
}
