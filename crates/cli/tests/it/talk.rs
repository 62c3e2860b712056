//! Help, completions, colour, machine-readable errors, bugs, doctor and bench.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{command, polity, run_of, stories};

const VERBS: &[&[&str]] = &[
    &["demo"],
    &["loop"],
    &["train", "sft"],
    &["train", "reward"],
    &["train", "dpo"],
    &["train", "ppo"],
    &["generate"],
    &["logprobs"],
    &["score"],
    &["chat"],
    &["bench", "train"],
    &["bench", "generate"],
    &["init"],
    &["import"],
    &["sample"],
    &["panel", "simulate"],
    &["panel", "judge"],
    &["serve"],
    &["agreement"],
    &["freeze"],
    &["export"],
    &["ledger", "log"],
    &["ledger", "verify"],
    &["doctor"],
    &["completions"],
];

#[test]
fn help_has_examples_and_fits_80_columns() {
    for verb in VERBS {
        let run = polity(verb.iter().chain(&["--help"])).ok();
        assert!(run.stdout.contains("\nExamples:\n  polity "), "{verb:?}: {}", run.stdout);
        for line in run.stdout.lines() {
            assert!(line.chars().count() <= 80, "{verb:?}: {line:?}");
        }
        assert!(polity(verb.iter().chain(&["-h"])).ok().stdout.contains("Usage: polity"));
    }
    let settings = polity(["generate", "--help"]).ok().stdout;
    assert!(settings.contains("\n  repetition_penalty = 1   [a number above 0]\n"), "{settings}");
    let settings = polity(["train", "dpo", "--help"]).ok().stdout;
    assert!(settings.contains("  beta = 0.1"), "{settings}");
}

#[test]
fn usage_errors_exit_with_2() {
    for words in [
        &["genrate"][..],
        &["generate"],
        &["generate", "--model", "m", "--input", "x", "--set", "temperature"],
        &["generate", "--model", "m", "--input", "x", "--wibble"],
        &["bench", "train", "--rows", "0"],
        &["bench", "train", "--model", "m", "--shape", "tiny"],
        &["doctor", "--threads", "many"],
        &["train"],
        &[],
    ] {
        let run = polity(words);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{words:?}: {}", run.stderr);
    }
    assert!(polity(["genrate"]).stderr.contains("generate"), "suggests the nearest verb");
    assert_eq!(polity(["--version"]).ok().stdout, format!("polity {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = polity(["completions", shell]).ok().stdout;
        assert!(script.contains("polity") && script.contains("logprobs"), "{shell}");
    }
}

#[test]
fn colour_only_where_it_is_wanted() {
    let error = |more: &[&str]| polity(["score", "-m", "nowhere", "-i", "nowhere"].iter().chain(more)).stderr;
    assert!(!error(&[]).contains('\x1b'));
    assert!(!error(&["--color", "never"]).contains('\x1b'));
    assert!(error(&["--color", "always"]).starts_with("\x1b[31;1merror:\x1b[0m "));
    let help = polity(["--color=always", "generate", "--help"]).ok().stdout;
    assert!(help.contains('\x1b'));
}

#[test]
fn errors_are_json_when_asked() {
    let run = polity(["generate", "-m", &stories(), "-i", "-", "--set", "temprature=1", "--json"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    let error: Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "bad_input");
    assert_eq!(error["error"]["exit_code"], 2);
    assert_eq!(error["error"]["hints"][0], "did you mean temperature?");
}

#[test]
fn quiet_says_nothing_that_went_well() {
    let run = |more: &[&str]| {
        let model = stories();
        let args = ["generate", "-m", &model, "-i", "-", "--set", "max_new_tokens=3"];
        crate::support::polity_with(args.iter().chain(more), b"{\"ids\": [1]}").ok().stderr
    };
    assert!(run(&[]).starts_with("1 response, 3 tokens in "));
    assert_eq!(run(&["--quiet"]), "");
    assert_eq!(run(&["--json"]), "");
}

#[test]
fn a_bug_is_reported_as_one() {
    let run = polity(["debug", "panic"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("error: polity has a bug and stopped: asked to\n"), "{}", run.stderr);
    assert!(run.stderr.contains("please report"), "{}", run.stderr);
    assert!(!run.stderr.contains("RUST_BACKTRACE") && !run.stderr.contains("panicked at"), "{}", run.stderr);
}

#[test]
fn doctor_passes_here() {
    let report: Value = serde_json::from_str(&polity(["doctor", "--json"]).ok().stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert!(report["checks"].as_array().unwrap().len() >= 19);
    assert!(report["hardware"]["cores"].as_u64().unwrap() >= 1);
    let text = polity(["doctor", "--threads", "1"]).ok().stdout;
    assert!(text.contains("computing with 1 thread\n") && !text.contains("FAILED"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn bench_reports_speed_as_json() {
    let model = stories();
    let args = ["bench", "train", "--model", &model, "--rows", "2", "--length", "32", "--steps", "2"];
    let report: Value = serde_json::from_str(&polity(args).ok().stdout).unwrap();
    assert_eq!(report["tokens_per_step"], 64);
    assert_eq!(report["stage"], "sft");
    for positive in ["tokens_per_s", "gflops", "share_of_matmul"] {
        assert!(report[positive].as_f64().unwrap() > 0.0, "{positive}");
    }
    assert!(report["seconds_per_step"]["min"].as_f64() <= report["seconds_per_step"]["median"].as_f64());
    let share = report["gflops"].as_f64().unwrap() / report["matmul"]["gflops"].as_f64().unwrap();
    assert!((share - report["share_of_matmul"].as_f64().unwrap()).abs() < 1e-9);

    let args = ["bench", "generate", "--model", &model, "--batches", "1,3", "--prompt-length", "8"];
    let more = ["--new-tokens", "4", "--repeats", "1"];
    let report: Value = serde_json::from_str(&polity(args.iter().chain(&more)).ok().stdout).unwrap();
    let responses: Vec<_> = report["batches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|batch| batch["responses"].as_u64().unwrap())
        .collect();
    assert_eq!(responses, [1, 3]);

    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("lengths.svg");
    let args = ["bench", "sweep", "--over", "length", "--values", "8,32", "--tokens", "64", "--steps", "1"];
    let more = ["--precisions", "f32,bf16", "--plot", plot.to_str().unwrap()];
    let report: Value = serde_json::from_str(&polity(args.iter().chain(&more)).ok().stdout).unwrap();
    let points = report["points"].as_array().unwrap();
    let of = |point: &Value| {
        let number = |key: &str| point[key].as_u64().unwrap();
        (point["precision"].as_str().unwrap().to_owned(), number("value"), number("rows"), number("length"))
    };
    let expect = |precision: &str| [(precision.to_owned(), 8, 8, 8), (precision.to_owned(), 32, 2, 32)];
    assert_eq!(points.iter().map(of).collect::<Vec<_>>(), [expect("f32"), expect("bf16")].concat());
    assert!(points.iter().all(|point| point["tokens_per_s"].as_f64().unwrap() > 0.0));
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"), "{svg}");
    assert_eq!(svg.matches("<circle").count(), 4, "a dot for each point");
    assert!(!svg.contains("var("), "a colour is a colour, not a variable");

    let run = polity(["bench", "sweep", "--over", "shape", "--values", "3"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("every named shape is measured"), "{}", run.stderr);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for words in [&["doctor"][..], &["doctor", "--json"], &["completions", "bash"]] {
        let run = run_of(command(words).stdin(Stdio::null()).stdout(full()).output().unwrap());
        assert_eq!(run.code, 1, "{words:?}");
        assert!(run.stderr.contains("cannot write to stdout: No space left"), "{words:?}: {}", run.stderr);
        assert!(run.stderr.contains("free some space"), "{}", run.stderr);
    }
}
