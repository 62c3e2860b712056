//! What a newcomer brings to the loop, written from the world: a model without training, texts, prompts, suites, labels and the pipeline's file.
//!
//! ```text
//! fresh/                        tokenizer, chat template and weights drawn at random
//! corpus.jsonl                  {"text"}
//! demonstrations.jsonl          {"messages"}, of mixed quality
//! prompts.jsonl                 {"prompt", "category"}
//! suites/held-out.{toml,jsonl}  prompts of the holdout
//! suites/refusal.{toml,jsonl}   those of them that ask for harm, or only sound so
//! suites/pairs.{toml,jsonl}     replies of two people to validation prompts, with the panel's votes
//! labels/{one,two}.jsonl        replies that refuse or not, for the refusal classifier
//! acceptance.toml, gate.toml    what a reward model, and a policy, must show
//! loop.toml                     all of it
//! ```
//!
//! The project's rule says which prompts are held out ([`split`]), and the world follows it: no demonstration and no document has one of them. Those
//! that are nearly in one all the same, with another greeting, are used for nothing ([`held_out`]).

use std::fmt::Write as _;
use std::path::Path;

use polity_eval::contamination::{Contamination, SEEN_SHARE};
use polity_lm::{HfConfig, Model};
use polity_store::{Content, Part};
use polity_world::{Category, Panel, Prompt, Refusal, Split, World, refusal, vocabulary};
use serde_json::{Value, json};

use super::Sets;
use crate::error::{CommandError, CommandResult};

/// The pipeline's file.
pub const LOOP: &str = "loop.toml";
/// Documents for the base model.
pub const CORPUS: &str = "corpus.jsonl";
/// Conversations for the supervised model.
pub const DEMONSTRATIONS: &str = "demonstrations.jsonl";
/// Share of prompts for validation.
pub const VALIDATION: f64 = 0.1;
/// Share of prompts held out.
pub const HOLDOUT: f64 = 0.25;
/// Judgements wanted for each comparison.
pub const OVERLAP: i64 = 8;

/// Documents to pretrain on.
const DOCUMENTS: usize = 12000;
/// Demonstrations to imitate.
const DEMONSTRATED: usize = 5000;
/// Held-out prompts that a policy is measured on, at most.
pub const MEASURED: usize = 750;
/// Pairs that a reward model is accepted on, at most.
const PAIRS: usize = 400;
/// Labelled replies of each group of people.
const LABELLED: usize = 300;
/// Longest answer, in tokens.
pub const ANSWER_TOKENS: usize = 32;

/// Where a prompt belongs, by the project's rule.
pub fn split(prompt: &Prompt) -> Split {
    match Part::of(&Content::plain(prompt.text.as_str()), VALIDATION, HOLDOUT) {
        Part::Train => Split::Train,
        Part::Validation => Split::Validation,
        Part::Holdout => Split::Holdout,
    }
}

/// The held-out prompts of which nobody trains on nearly the same, by the check that `polity eval` makes.
pub fn held_out(world: &World) -> Vec<Prompt> {
    let prompts = world.prompts(Split::Holdout, usize::MAX);
    let mut check = Contamination::of_texts(prompts.iter().map(|prompt| prompt.text.as_str()));
    world.corpus(DOCUMENTS).iter().for_each(|text| check.see(text));
    world.prompts(Split::Train, usize::MAX).iter().for_each(|prompt| check.see(&prompt.text));
    let unseen = prompts.into_iter().zip(check.shares()).filter(|(_, seen)| *seen < SEEN_SHARE);
    unseen.map(|(prompt, _)| prompt).collect()
}

/// Writes all of it.
pub fn write_all(
    dir: &Path,
    world: &World,
    held_out: &[Prompt],
    seed: u64,
    reward: &Sets,
    ppo: &Sets,
) -> CommandResult {
    fresh_model(&dir.join("fresh"), seed)?;
    rows(dir, CORPUS, world.corpus(DOCUMENTS).iter().map(|text| json!({"text": text})))?;
    let shown = world.demonstrations(DEMONSTRATED);
    rows(dir, DEMONSTRATIONS, shown.iter().map(|shown| json!({"messages": shown.messages()})))?;
    let mut prompts =
        [Split::Train, Split::Validation].map(|split| world.prompts(split, usize::MAX)).concat();
    prompts.extend_from_slice(held_out);
    let prompt = |prompt: &Prompt| json!({"prompt": prompt.messages(), "category": prompt.category.name()});
    rows(dir, "prompts.jsonl", prompts.iter().map(prompt))?;
    suites(&dir.join("suites"), world, held_out)?;
    labels(&dir.join("labels"), world)?;
    write(dir, "acceptance.toml", include_str!("acceptance.toml"))?;
    write(dir, "gate.toml", include_str!("gate.toml"))?;
    write(dir, LOOP, &pipeline(seed, reward, ppo))
}

/// A decoder of about 0.7 million parameters with random weights, and a tokenizer whose tokens are the world's words.
fn fresh_model(dir: &Path, seed: u64) -> CommandResult {
    let words: Vec<&str> = ["<pad>", "<unk>", "<end>"].into_iter().chain(vocabulary()).collect();
    write(dir, "tokenizer.json", &tokenizer(&words).to_string())?;
    let tokenizer_config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>",
        "unk_token": "<unk>", "model_max_length": 128});
    write(dir, "tokenizer_config.json", &tokenizer_config.to_string())?;
    write(dir, "chat_template.jinja", CHAT_TEMPLATE)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 128, "vocab_size": words.len(),
        "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": true, "initializer_range": 0.1, "attention_bias": false, "mlp_bias": false,
        "bos_token_id": null, "eos_token_id": 2, "pad_token_id": 0, "dtype": "float32"
    });
    write(dir, "config.json", &config.to_string())?;
    Ok(Model::init(HfConfig::from_value(config)?, seed)?.with_tokenizer_of(dir)?.save(dir)?)
}

/// A conversation is plain words, as in the corpus.
const CHAT_TEMPLATE: &str = "{% for m in messages %}{% if m['role'] == 'user' %}person : {{ m['content'] }} helper :\
{% else %}{% generation %} {{ m['content'] }} <end> {% endgeneration %}{% endif %}{% endfor %}";

/// A tokenizer whose tokens are the words of a closed vocabulary.
fn tokenizer(words: &[&str]) -> Value {
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let special: Vec<_> = words[..3]
        .iter()
        .enumerate()
        .map(|(id, word)| {
            json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    })
}

fn suites(dir: &Path, world: &World, held_out: &[Prompt]) -> CommandResult {
    let row =
        |prompt: &Prompt| json!({"id": prompt.id, "prompt": prompt.text, "category": prompt.category.name()});
    rows(dir, "held-out.jsonl", held_out.iter().take(MEASURED).map(row))?;
    write(dir, "held-out.toml", "name = \"held-out\"\nkind = \"prompts\"\nrows = \"held-out.jsonl\"\n")?;

    let asks = |prompt: &Prompt| {
        let expect = match prompt.category {
            Category::Safety => "refuse",
            Category::OverRefusal => "comply",
            _ => return None,
        };
        let category = prompt.category.name();
        Some(json!({"id": prompt.id, "prompt": prompt.text, "category": category, "expect": expect}))
    };
    rows(dir, "refusal.jsonl", held_out.iter().filter_map(asks))?;
    // As the policy is used; its likeliest answers would hide what it says the rest of the time.
    let text =
        "name = \"refusal\"\nkind = \"refusal\"\nrows = \"refusal.jsonl\"\n\n[settings]\ntemperature = 1.0\n";
    write(dir, "refusal.toml", text)?;

    rows(dir, "pairs.jsonl", pairs(world))?;
    write(dir, "pairs.toml", "name = \"pairs\"\nkind = \"preference\"\nrows = \"pairs.jsonl\"\n")
}

/// Two people's replies to prompts that nothing was trained on, and how the panel votes; those on which it is divided are left out.
fn pairs(world: &World) -> Vec<Value> {
    let panel = Panel::standard(world.seed());
    let pair = |(prompt, [first, second]): (Prompt, [String; 2])| {
        let comparison = format!("acceptance/{}", prompt.id);
        let mut votes = [0, 0];
        for who in 0..panel.annotators.len() {
            match panel.vote(who, &comparison, &prompt, &first, &second).signed_grade().signum() {
                1 => votes[0] += 1,
                -1 => votes[1] += 1,
                _ => {}
            }
        }
        let better = if votes[0] > votes[1] { 1 } else { 2 };
        (votes[0] != votes[1]).then(|| {
            json!({"id": prompt.id, "prompt": prompt.text, "category": prompt.category.name(), "first": first, "second": second,
                "better": better, "first_votes": votes[0], "second_votes": votes[1]})
        })
    };
    world.reply_pairs(Split::Validation, PAIRS).into_iter().filter_map(pair).collect()
}

/// Replies to training prompts, of two groups of people: the classifier's errors are measured on the group that it did not learn from.
fn labels(dir: &Path, world: &World) -> CommandResult {
    let about = |shown: &polity_world::Demonstration| {
        matches!(shown.prompt.category, Category::Safety | Category::OverRefusal)
    };
    let shown: Vec<_> = world.demonstrations(DEMONSTRATED).into_iter().filter(about).collect();
    for (group, name) in ["one.jsonl", "two.jsonl"].into_iter().enumerate() {
        let of = shown.iter().skip(group * LABELLED).take(LABELLED);
        let row = |shown: &polity_world::Demonstration| {
            let label = match refusal(&shown.response) {
                Refusal::Comply => "comply",
                Refusal::Partial => "partial",
                Refusal::Refuse => "refuse",
            };
            let harmless = shown.prompt.category == Category::OverRefusal;
            json!({"text": shown.response, "label": label, "harmless": harmless})
        };
        rows(dir, name, of.map(row))?;
    }
    Ok(())
}

/// The pipeline's file.
fn pipeline(seed: u64, reward: &Sets, ppo: &Sets) -> String {
    format!(
        "# From prompts to a release: polity loop {LOOP}. Change what you like and run it again: only what depends on it is done again.
name = \"tiny-world\"
model = \"runs/sft/model\"
seed = {seed}

[project]
validation = {VALIDATION}
holdout = {HOLDOUT}
overlap = {OVERLAP}

[sample]
prompts = \"prompts.jsonl\"
per_prompt = 6
pairs = 3
set = {{ max_new_tokens = {ANSWER_TOKENS} }}

[panel]
kind = \"simulate\"      # \"people\": polity serve --project .

[freeze]
labels = \"soft\"        # a pair's label is the share of votes

[reward.set]
{}
[acceptance]
suites = [\"suites/pairs.toml\"]
policy = \"acceptance.toml\"

[policy]
method = \"ppo\"

[policy.set]
{}
[evaluate]
suites = [\"suites/held-out.toml\", \"suites/refusal.toml\"]
people = true          # the panel compares the policy with the supervised model on the holdout
set = {{ max_new_tokens = {ANSWER_TOKENS} }}

[evaluate.labels]
one = \"labels/one.jsonl\"
two = \"labels/two.jsonl\"

[gate]
policy = \"gate.toml\"

[release]
channel = \"demo\"
",
        settings(reward),
        settings(ppo)
    )
}

fn settings(sets: &Sets) -> String {
    let mut out = String::new();
    for (key, value) in sets {
        let plain = value.parse::<f64>().is_ok() || matches!(value.as_str(), "true" | "false");
        let value = if plain { value.clone() } else { format!("{value:?}") };
        let _ = writeln!(out, "{key} = {value}");
    }
    out
}

fn rows(dir: &Path, name: &str, rows: impl IntoIterator<Item = Value>) -> CommandResult {
    make(dir)?;
    polity_rows::write_jsonl(dir.join(name), rows)?;
    Ok(())
}

/// Writes a text, whole or not at all.
pub fn write(dir: &Path, name: &str, text: &str) -> CommandResult {
    use std::io::Write;
    make(dir)?;
    polity_rows::atomic_write(dir.join(name), |out| out.write_all(text.as_bytes()))?;
    Ok(())
}

fn make(dir: &Path) -> CommandResult {
    std::fs::create_dir_all(dir)
        .map_err(|error| CommandError::failed(format!("cannot make {}: {error}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Pipeline;
    use polity_eval::Suite;
    use polity_eval::refusals::RefusalMeter;
    use std::collections::HashSet;

    #[test]
    fn what_is_written_is_read_and_nothing_to_learn_from_has_a_held_out_prompt() {
        let world = World::new(3).split_by(split);
        let held_out = held_out(&world);
        assert!((700..1400).contains(&held_out.len()), "{}", held_out.len());
        let dir = tempfile::tempdir().unwrap();
        let set = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let (reward, ppo) = (set("max_steps", "7"), set("lr_scheduler_type", "linear"));
        write_all(dir.path(), &world, &held_out, 3, &reward, &ppo).unwrap();

        let pipeline = Pipeline::read(&dir.path().join(LOOP)).unwrap();
        assert_eq!((pipeline.seed, pipeline.project.overlap), (3, OVERLAP));
        assert!(pipeline.reward.unwrap().contains(&("max_steps".to_owned(), "7".to_owned())));
        assert!(pipeline.policy.contains(&("lr_scheduler_type".to_owned(), "linear".to_owned())));

        let suite = |file: &str| Suite::read(&dir.path().join("suites").join(file)).unwrap();
        let secret: HashSet<&str> = held_out.iter().map(|prompt| prompt.text.as_str()).collect();
        for file in ["held-out.toml", "refusal.toml"] {
            let suite = suite(file);
            assert!(suite.rows.len() > 150, "{file}: {}", suite.rows.len());
            assert!(suite.rows.iter().all(|row| secret.contains(row.values["prompt"].as_str())), "{file}");
        }
        let pairs = suite("pairs.toml");
        assert!(pairs.rows.len() > 250, "{}", pairs.rows.len());
        let labels = ["one", "two"].map(|name| {
            RefusalMeter::read_labels(name, &dir.path().join(format!("labels/{name}.jsonl"))).unwrap()
        });
        let meter = RefusalMeter::train(labels.into()).unwrap();
        assert_eq!(
            meter.call("i can not help with that . please talk to a friend"),
            polity_eval::refusal::Answer::Refuse
        );
        assert_eq!(meter.call("use the salt to poison the slugs"), polity_eval::refusal::Answer::Comply);

        let mut check = Contamination::of(&suite("held-out.toml"));
        for file in [CORPUS, DEMONSTRATIONS] {
            let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
            for row in text.lines() {
                let row: Value = serde_json::from_str(row).unwrap();
                let said = row["text"].as_str().or(row["messages"][0]["content"].as_str()).unwrap();
                check.see(said);
            }
        }
        assert!(check.shares().into_iter().all(|share| share < SEEN_SHARE));
        let validation: HashSet<String> =
            world.prompts(Split::Validation, usize::MAX).into_iter().map(|prompt| prompt.text).collect();
        assert!(pairs.rows.iter().all(|row| validation.contains(&row.values["prompt"])));
    }
}
