//! A project's runs, evaluations, verdicts and releases to look at: numbers as trainers write them, made by formula.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use polity_chart::{Board, Metric, Panel};
use polity_store::*;
use serde_json::{Value, json};

/// What the sample's trainer logs, as PPO does.
pub fn board() -> Board {
    let panel = |title: &str, lines: &[(&str, &str)]| Panel {
        title: title.into(),
        lines: lines.iter().map(|(label, name)| ((*label).into(), (*name).into())).collect(),
    };
    let metric = |name: &str, unit: &str, formula: &str| Metric {
        name: name.into(),
        unit: unit.into(),
        formula: formula.into(),
    };
    Board {
        stage: "ppo".into(),
        title: "Proximal policy optimisation".into(),
        panels: vec![
            panel("Score of the reward model", &[("score", "objective/scores")]),
            panel("Score that matters", &[("gold", "samples/gold")]),
            panel("KL from the reference", &[("KL", "objective/kl")]),
            panel("Entropy", &[("policy", "policy/entropy_avg")]),
            panel("Response length", &[("mean", "tokens/responses_len_mean")]),
            panel(
                "How responses end",
                &[("by themselves", "samples/eos_rate"), ("cut", "completions/clipped_ratio")],
            ),
        ],
        metrics: vec![
            metric("objective/scores", "reward", "mean score of the rollout's responses"),
            metric("samples/gold", "utility", "mean score by people or a known truth"),
            metric("objective/kl", "nats per sequence", "mean over responses of log policy - log reference"),
            metric("policy/entropy_avg", "nats per token", "mean entropy of the policy over response tokens"),
            metric("tokens/responses_len_mean", "tokens", "response tokens / responses"),
            metric(
                "samples/eos_rate",
                "share of responses",
                "responses that ended by themselves / responses",
            ),
            metric("completions/clipped_ratio", "share of responses", "responses that were cut / responses"),
            metric("episode", "episodes", "responses rolled out since the run began"),
            metric("lr", "per step", "learning rate of the policy"),
        ],
        alarms: [("kl_explosion".to_owned(), vec!["objective/kl".to_owned()])].into(),
        eval_prefix: "eval_".into(),
    }
}

/// A line of `metrics.jsonl`: a policy that is pushed `push` times as hard as is good for it.
pub fn step(step: u64, push: f64) -> String {
    let (t, wave) = (step as f64 / 200.0, (step as f64 * 1.7).sin());
    let kl = (30.0 * push * t * t + 0.6 * wave * t).max(0.0);
    let mut line = json!({
        "step": step, "time_s": step as f64 * 1.5, "episode": 8 * step,
        "objective/scores": 2.4 * kl.sqrt() / (2.0 + kl.sqrt()) + 0.06 * wave,
        "objective/kl": kl,
        "policy/entropy_avg": 2.1 - 0.9 * push * t + 0.04 * wave,
        "tokens/responses_len_mean": 31.0 + 9.0 * t + 2.0 * wave,
        "samples/eos_rate": 0.93 - 0.1 * t + 0.01 * wave,
        "completions/clipped_ratio": 0.05 + 0.1 * t - 0.01 * wave,
        "lr": 3e-6 * (1.0 - t).max(0.0),
    });
    if step.is_multiple_of(10) {
        line["samples/gold"] = json!(0.9 * kl.sqrt() - 0.16 * kl + 0.03 * wave);
    }
    format!("{line}\n")
}

/// Writes a run's files. `finished` says when it ended, if it did.
pub fn write_run(dir: &Path, push: f64, steps: u64, finished: Option<&str>) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let manifest = json!({
        "stage": "ppo", "command": ["polity", "train", "ppo", "--out", "runs/ppo"], "config_blake3": "00",
        "inputs": [{"role": "model", "path": "runs/sft/model", "blake3": "3f9a81c2d4e5", "bytes": 9}],
        "code_version": "0.1.0", "code_commit": null,
        "machine": {"cpu": "a processor", "isa": "avx512", "threads": 2}, "seed": 42,
        "started": "2026-11-01T08:00:00Z", "finished": finished, "resumed": [],
    });
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    let settings = format!(
        "# Responses rolled out in all.\ntotal_episodes = 1600\nkl_coef = {}\nlearning_rate = 3e-6\nseed = 42\n",
        0.05 / push
    );
    fs::write(dir.join("resolved.toml"), settings)?;
    let lines: String = (1..=steps).map(|n| step(n, push)).collect();
    fs::write(dir.join("metrics.jsonl"), lines)?;
    let mut alarms = String::new();
    if push > 1.5 {
        let seen =
            "smoothed KL of 41.2 nats per sequence, above 40; raise kl_coef, or lower the learning rate";
        let alarm = json!({"step": 150, "alarm": "kl_explosion", "severity": "critical", "raised": true, "message": seen});
        let _ = writeln!(alarms, "{alarm}");
    }
    fs::write(dir.join("alarms.jsonl"), alarms)?;
    let mut samples = String::new();
    for n in (0..=steps).step_by(40) {
        for (index, prompt) in ["What helps against hiccups?", "Write a line about rain."].iter().enumerate()
        {
            let response = format!(
                "Hold your breath, and count to {}. Then drink a glass of water, slowly.",
                10 + n / 10
            );
            let sample = json!({
                "step": n, "prompt_index": index, "prompt": prompt, "response": response,
                "response_tokens": 18, "stopped": n % 80 != 0, "score": 0.4 + n as f64 / 100.0,
            });
            let _ = writeln!(samples, "{sample}");
        }
    }
    fs::write(dir.join("samples.jsonl"), samples)
}

/// An evaluation file's text: shares by category around `level`.
pub fn evaluation(model: &str, level: f64) -> String {
    let mut measures = Vec::new();
    for (name, unit, scale) in
        [("win_rate", "share", 1.0), ("refusal_rate", "share", 0.4), ("response_tokens", "tokens", 60.0)]
    {
        for (n, category) in
            [None, Some("helpfulness"), Some("safety"), Some("factuality"), Some("tone")].iter().enumerate()
        {
            let estimate = scale * (level + 0.05 * (n as f64 * 1.9).sin());
            let half = scale * (0.04 + 0.02 * n as f64);
            measures.push(json!({
                "name": name, "category": category, "unit": unit, "estimate": estimate, "low": estimate - half,
                "high": estimate + half, "n": 200 - 30 * n, "confidence": 0.95,
                "items": [{"id": "prompt-1", "sum": estimate}],
            }));
        }
    }
    json!({"model": model, "suite": "77ab01cd9e", "settings": {"seed": 1, "temperature": 0.7}, "measures": measures}).to_string()
}

fn criterion(id: &str, verdict: &str, blocking: bool, estimate: f64, half: f64) -> Value {
    let reason = match verdict {
        "pass" => format!("it is better by {estimate:.3}, and surely not worse than the margin allows"),
        _ => format!("it is better by {estimate:.3}, which may be chance"),
    };
    json!({
        "id": id, "verdict": verdict, "reason": reason, "blocking": blocking, "mode": "fixed", "confidence": 0.95,
        "better": "higher", "comparator": "baseline", "margin": 0.02,
        "measure": {"name": "win_rate", "category": null, "unit": "share", "estimate": 0.5 + estimate, "low": 0.5 + estimate - half, "high": 0.5 + estimate + half, "n": 200},
        "reference": 0.5,
        "effect": {"estimate": estimate, "low": estimate - half, "high": estimate + half, "prompts": 200, "p_pass": 0.01, "p_fail": 0.9,
            "p_adjusted": null, "detectable": 0.06, "prompts_to_settle": if verdict == "pass" { Value::Null } else { json!(840) }},
    })
}

/// A verdict with its evaluations; returns it as recorded.
pub async fn judged(
    store: &Store,
    model: &str,
    baseline: &str,
    passes: bool,
    approvals: u32,
    now_ms: i64,
) -> Result<Recorded<Verdict>> {
    let word = if passes { "pass" } else { "inconclusive" };
    let criteria = [
        criterion("helpful", "pass", true, 0.11, 0.04),
        criterion("no worse on safety", word, true, if passes { 0.04 } else { 0.01 }, 0.05),
        criterion("length", "inconclusive", false, -0.01, 0.07),
    ];
    let said = json!({
        "verdict": word, "reasons": [], "p": 0.01, "policy": "default", "policy_hash": "00", "valid_days": 30, "approvals": approvals,
        "candidate": model, "baseline": baseline, "last_release": null, "evaluations": [], "criteria": criteria,
    });
    let level = if passes { 0.62 } else { 0.53 };
    let new = NewVerdict {
        model: model.into(),
        verdict: word.into(),
        policy_name: "default".into(),
        policy: "name = \"default\"".into(),
        approvals,
        valid_days: 30,
        evaluations: vec![
            (model.into(), evaluation(model, level), "measures/candidate.json".into()),
            (baseline.into(), evaluation(baseline, 0.5), "measures/baseline.json".into()),
        ],
        said: said.to_string(),
        code_version: "0.1.0".into(),
    };
    store.add_verdict(new, NOBODY, now_ms).await
}

/// Releases a model, whose directory with its card is written below the project's.
pub async fn released(
    store: &Store,
    project: &Path,
    model: &str,
    share: Option<f64>,
    actor: &str,
    now_ms: i64,
) -> Result<Recorded<Release>> {
    let release = store.channel("production").await?.next_name();
    let dir = format!("releases/{release}");
    let card = format!(
        "---\nlicense: apache-2.0\n---\n\n# {release}\n\nMade from votes.\n\n| measure | estimate |\n|---|---|\n| win rate | 0.62 |\n"
    );
    fs::create_dir_all(project.join(&dir)).expect("the project's directory can be written");
    fs::write(project.join(&dir).join("README.md"), &card).expect("the project's directory can be written");
    let files =
        BTreeMap::from([("README.md".to_owned(), blake3::hash(card.as_bytes()).to_hex().to_string())]);
    let asked = Asked { model: model.into(), channel: "production".into(), verdict: None };
    let new = NewRelease { asked, release, dir, files, canary_share: share };
    Ok(store.add_release(new, actor, now_ms).await?.expect("its grounds were made"))
}

/// The end of a run in the ledger.
pub async fn recorded(store: &Store, place: &str, model: &str, now_ms: i64) -> Result<()> {
    let run = Run {
        run: place.into(),
        stage: "ppo".into(),
        settings: "00".into(),
        seed: 42,
        inputs: vec![],
        model: Some(model.into()),
        manifest: None,
        resolved: None,
    };
    store
        .add_run(run, json!({"stage": "ppo"}).to_string(), "kl_coef = 0.05\n".into(), NOBODY, now_ms)
        .await
        .map(|_| ())
}
