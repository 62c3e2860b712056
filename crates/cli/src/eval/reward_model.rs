//! A reward model's half of `polity eval`: pairs, probes, an ensemble and best-of-n in, one evaluation and an acceptance out.
//!
//! The pairs of all suites are taken together, each suite a category, so there is one number for each measure and one verdict. A pair that is too long for
//! the model, or that it was trained on (its prompt and both responses stand in the training data), is left out and said to be.
//!
//! At most [`PROBED_MAX`] pairs, spread evenly, are probed: seven times the work of scoring them.
//!
//! Not here: what scores mean (`polity_eval::acceptance`), best-of-n and curves (`hacking`), the verdict (`gate`).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use polity_eval::acceptance::{
    Acceptance, Found as Measured, Missing, OPENINGS_WORDS, ProbedPair, ScoredPair, ensemble_measures,
    first_half, opening, pair_measures, probe_measures, twice,
};
use polity_eval::{Evaluation, Kind, Suite};
use polity_rows::{Completion, Message, Text};
use polity_train::run::{CODE_VERSION, Input};
use polity_train::settings::Precision;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::hacking::Sampler;
use super::respond::chats;
use super::shelf::{self, Found, Shelf};
use super::training::Training;
use super::{hacking, print, training};
use crate::acceptance;
use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::gate;
use crate::input::{self, CompletionIds};
use crate::measure::scores;
use crate::model::Loaded;
use crate::output::{json_to_stdout, to_stdout};
use crate::record::short;
use crate::settings::{Read, Settings, Uses};
use crate::ui::{Ui, plural};

/// Pairs that are probed at the most: a share of half has an error of 2.5 points then.
const PROBED_MAX: usize = 400;

/// Measures a reward model on suites, judges it, and prints.
pub fn run(args: &EvalArgs, loaded: Loaded, suites: &[Suite], global: &Global, ui: &Ui) -> CommandResult {
    let Accepted { found, missing, made, file } = accept(args, loaded, suites, global, ui)?;
    tell(&found, &missing, &made, file.as_deref(), global)
}

/// A reward model that was measured and judged.
pub struct Accepted {
    /// The evaluation.
    pub found: Found,
    missing: Vec<Missing>,
    made: Acceptance,
    file: Option<PathBuf>,
}

/// Measures a reward model on suites, and judges it.
pub fn accept(
    args: &EvalArgs,
    mut loaded: Loaded,
    suites: &[Suite],
    global: &Global,
    ui: &Ui,
) -> CommandResult<Accepted> {
    check(args, suites)?;
    let policy = args.acceptance.policy.as_deref().unwrap_or(Path::new(gate::REWARD_MODEL));
    let (_, policy_text) = gate::policy(Some(policy))?;
    let Read { settings, .. } = Settings::read(Uses::Score, &args.model, &loaded.model, &args.sets)?;
    loaded.multiply_in(settings.precision);
    let training = training::texts_of(&args.model, &args.train_data, ui)?;
    let pairs = without_training(pairs_of(suites, &loaded)?, &training, ui)?;

    let suite = together(suites);
    let shelf = Shelf::open(&args.out, args.again)?;
    let sampler = Sampler::open(&args.acceptance, || prompts_of(suites, &pairs), global, ui)?;
    let wanted = wanted(args, &loaded, &suite, &training, sampler.as_ref())?;
    let mut missing = Vec::new();
    let found = shelf.find_or(&suite, wanted, |evaluation| {
        let mut measured = measure(args, &loaded, &pairs, global, ui)?;
        let hacked = hacking::measures(&args.acceptance, &loaded, sampler.as_ref(), &shelf, global, ui)?;
        add(&mut measured, hacked);
        evaluation.measures = measured.measures;
        missing = measured.missing;
        Ok(())
    })?;
    let made = Acceptance::new(policy, &policy_text, found.evaluation.clone(), unix_ms())?;
    let file = leave_beside(args, &suite, &made, ui)?;
    Ok(Accepted { found, missing, made, file })
}

fn check(args: &EvalArgs, suites: &[Suite]) -> CommandResult {
    if let Some(suite) = suites.iter().find(|suite| suite.kind != Kind::Preference) {
        return Err(CommandError::bad_input(format!(
            "suite {} has no pairs with a better one; {} is a reward model, which scores such pairs",
            suite.name,
            args.model.display()
        ))
        .hint("kind = \"preference\" is for reward models"));
    }
    let of_language_models = [
        (args.baseline.is_some(), "--baseline"),
        (args.reference.is_some(), "--reference"),
        (args.reward_model.is_some(), "--reward-model"),
        (args.judge.is_some(), "--judge"),
        (!args.labels.is_empty(), "--labels"),
    ];
    match of_language_models.into_iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(CommandError::bad_input(format!(
            "{flag} is for language models, and {} is a reward model",
            args.model.display()
        ))),
        None => Ok(()),
    }
}

/// All suites as one, by name and hash.
fn together(suites: &[Suite]) -> Suite {
    let [one, more @ ..] = suites else { unreachable!("clap asks for a suite") };
    if more.is_empty() {
        return one.clone();
    }
    let mut hashes: Vec<&str> = suites.iter().map(|suite| suite.hash.as_str()).collect();
    hashes.sort_unstable();
    let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
    Suite {
        name: names.join("+"),
        hash: blake3::hash(hashes.concat().as_bytes()).to_hex().to_string(),
        rows: Vec::new(),
        ..one.clone()
    }
}

/// The evaluation before anything is measured: what its key covers.
fn wanted(
    args: &EvalArgs,
    loaded: &Loaded,
    suite: &Suite,
    training: &Training,
    sampler: Option<&Sampler>,
) -> CommandResult<Evaluation> {
    let hash = |role: &str, path: &Path| Ok::<_, CommandError>(Input::hash(role, path)?.blake3);
    let settings = json!({
        "precision": Precision::from(loaded.cpu.precision()).name(),
        "chat": loaded.template()?.is_some(),
        "probed": PROBED_MAX,
        "polity": CODE_VERSION,
    });
    let mut inputs = Map::new();
    inputs.extend(training.hash().map(|hash| ("training_data".to_owned(), hash.into())));
    let flags = &args.acceptance;
    if !flags.beside.is_empty() {
        let hashes =
            flags.beside.iter().map(|dir| hash("reward_model", dir)).collect::<Result<Vec<_>, _>>()?;
        inputs.insert("beside".into(), hashes.into());
    }
    for (role, path) in
        [("candidates", &flags.candidates), ("gold_model", &flags.gold_model), ("curve", &flags.curve)]
    {
        if let Some(path) = path {
            let hash = match sampler.filter(|_| role == "candidates") {
                Some(sampler) => sampler.key()?,
                None => hash(role, path)?,
            };
            inputs.insert(role.into(), hash.into());
        }
    }
    let Value::Object(settings) = settings else { unreachable!("written as an object") };
    Ok(Evaluation {
        model: hash("model", &args.model)?,
        suite: suite.hash.clone(),
        suite_name: Some(suite.name.clone()),
        settings,
        inputs,
        measures: Vec::new(),
    })
}

/// A pair as text.
#[derive(Clone)]
struct Pair {
    /// Prompts that are the same have the same name.
    prompt_id: String,
    categories: Vec<String>,
    prompt: String,
    /// Of a prompt in messages.
    messages: Option<Vec<Message>>,
    better: String,
    worse: String,
    /// For each.
    votes: Option<[u64; 2]>,
    chats: bool,
}

fn pairs_of(suites: &[Suite], loaded: &Loaded) -> CommandResult<Vec<Pair>> {
    let several = suites.len() > 1;
    let mut names: HashMap<String, String> = HashMap::new();
    let mut pairs = Vec::new();
    for suite in suites {
        let chats = chats(suite, loaded)?;
        for row in &suite.rows {
            let value = |key: &str| row.values.get(key).cloned();
            let text = |key: &str| value(key).expect("a preference row has its keys");
            let prompt = suite.asking.prompt(&text("prompt"));
            let id = if several { format!("{}/{}", suite.name, row.id) } else { row.id.clone() };
            let (mut better, mut worse) = (text("first"), text("second"));
            let votes = value("first_votes").zip(value("second_votes"));
            let number = |votes: String| votes.parse().expect("checked when the suite was read");
            let mut votes = votes.map(|(first, second)| [number(first), number(second)]);
            if text("better") == "2" {
                std::mem::swap(&mut better, &mut worse);
                votes.iter_mut().for_each(|votes| votes.reverse());
            }
            pairs.push(Pair {
                prompt_id: names.entry(prompt.clone()).or_insert(id).clone(),
                categories: several
                    .then(|| suite.name.clone())
                    .into_iter()
                    .chain(row.category.clone())
                    .collect(),
                prompt,
                better,
                worse,
                votes,
                messages: row.messages(),
                chats,
            });
        }
    }
    Ok(pairs)
}

/// The prompts of the pairs, each once, as suites to answer.
fn prompts_of(suites: &[Suite], pairs: &[Pair]) -> Vec<Suite> {
    let mut left: HashSet<&str> = pairs.iter().map(|pair| pair.prompt.as_str()).collect();
    let mut prompts = |suite: &Suite| {
        let mut rows = suite.rows.clone();
        rows.retain(|row| left.remove(suite.asking.prompt(&row.values["prompt"]).as_str()));
        let all = serde_json::to_vec(&(&suite.asking, &rows)).expect("texts are JSON");
        Suite { kind: Kind::Prompts, hash: blake3::hash(&all).to_hex().to_string(), rows, ..suite.clone() }
    };
    suites.iter().map(&mut prompts).filter(|suite| !suite.rows.is_empty()).collect()
}

/// The pairs without those that the model was trained on.
fn without_training(pairs: Vec<Pair>, training: &Training, ui: &Ui) -> CommandResult<Vec<Pair>> {
    if training.is_empty() {
        return Ok(pairs);
    }
    let mut seen = HashSet::new();
    training.each(&mut |text| {
        seen.insert(blake3::hash(text.trim().as_bytes()));
    })?;
    let knows = |text: &str| seen.contains(&blake3::hash(text.trim().as_bytes()));
    // A transcript has prompt and response in one text.
    let trained = |pair: &Pair| {
        let whole = |response: &str| knows(&format!("{}{response}", pair.prompt));
        let prompt = match &pair.messages {
            Some(messages) => messages.iter().all(|message| knows(&message.content)),
            None => knows(&pair.prompt),
        };
        let apart = prompt && knows(&pair.better) && knows(&pair.worse);
        apart || (whole(&pair.better) && whole(&pair.worse))
    };
    let all = pairs.len();
    let kept: Vec<Pair> = pairs.into_iter().filter(|pair| !trained(pair)).collect();
    let left_out = all - kept.len();
    if kept.is_empty() {
        return Err(CommandError::bad_input(format!(
            "the model was trained on all {all} pairs, which leaves nothing to measure"
        ))
        .hint(
            "measure it on pairs from another file than the one it was trained on, such as --eval-data's",
        ));
    }
    if left_out > 0 {
        let pairs = plural("pair", left_out as u64);
        ui.warn(&format!("{left_out} of {all} {pairs} left out: the model was trained on them"));
    }
    Ok(kept)
}

fn measure(
    args: &EvalArgs,
    loaded: &Loaded,
    pairs: &[Pair],
    global: &Global,
    ui: &Ui,
) -> CommandResult<Measured> {
    let scored = score_pairs(loaded, pairs, ui)?;
    let kept: Vec<(&Pair, &ScoredPair)> =
        pairs.iter().zip(&scored).filter_map(|(pair, scored)| Some((pair, scored.as_ref()?))).collect();
    let left_out = pairs.len() - kept.len();
    if left_out > 0 {
        ui.warn(&format!(
            "{left_out} of {} {} left out: longer than the model's {} positions, or without a token to score",
            pairs.len(),
            plural("pair", left_out as u64),
            loaded.positions_max()
        ));
    }
    let scored: Vec<ScoredPair> = kept.iter().map(|(_, scored)| (*scored).clone()).collect();
    let mut found = pair_measures(&scored);
    add(&mut found, probe_measures(&probe(loaded, &kept, ui)?));
    if !args.acceptance.beside.is_empty() {
        add(&mut found, ensemble(&args.acceptance.beside, &kept, global, ui)?);
    }
    Ok(found)
}

fn add(found: &mut Measured, more: Measured) {
    found.measures.extend(more.measures);
    found.missing.extend(more.missing);
}

/// A prompt with a response, as the model reads it.
fn completion(pair: &Pair, response: &str) -> Completion {
    let text = |role: &str, text: &str| match pair.chats {
        true => Text::Messages(vec![Message::new(role, text)]),
        false => Text::Plain(text.to_owned()),
    };
    let prompt = match &pair.messages {
        Some(messages) => Text::Messages(messages.clone()),
        None => text("user", &pair.prompt),
    };
    Completion::Pair { prompt, completion: text("assistant", response) }
}

/// The responses of each pair in the model's tokens, `None` where one does not fit.
fn encode<const N: usize>(
    loaded: &Loaded,
    pairs: &[&Pair],
    responses: impl Fn(&Pair) -> [String; N],
    ui: &Ui,
) -> CommandResult<Vec<[Option<CompletionIds>; N]>> {
    let completions: Vec<Completion> =
        pairs.iter().flat_map(|pair| responses(pair).map(|response| completion(pair, &response))).collect();
    let mut encoded = input::encoded(completions.iter(), Path::new("the suite"), loaded, ui)?.into_iter();
    Ok(pairs.iter().map(|_| [(); N].map(|()| encoded.next().expect("one for each response"))).collect())
}

/// Rewards of what there is, in the shape it came in.
fn score<const N: usize>(
    loaded: &Loaded,
    rows: &[[Option<CompletionIds>; N]],
    ui: &Ui,
) -> CommandResult<Vec<[Option<f64>; N]>> {
    let flat: Vec<CompletionIds> = rows.iter().flatten().flatten().cloned().collect();
    let mut rewards = scores(loaded, &flat, ui)?.into_iter().map(f64::from);
    Ok(rows.iter().map(|row| row.each_ref().map(|ids| ids.as_ref().and_then(|_| rewards.next()))).collect())
}

fn score_pairs(loaded: &Loaded, pairs: &[Pair], ui: &Ui) -> CommandResult<Vec<Option<ScoredPair>>> {
    let both = |pair: &Pair| [pair.better.clone(), pair.worse.clone()];
    let encoded = encode(loaded, &pairs.iter().collect::<Vec<_>>(), both, ui)?;
    let rewards = score(loaded, &encoded, ui)?;
    let scored = pairs.iter().zip(encoded).zip(rewards).map(|((pair, ids), reward)| {
        let [Some(better), Some(worse)] = &ids else { return None };
        Some(ScoredPair {
            prompt: pair.prompt_id.clone(),
            categories: pair.categories.clone(),
            tokens: [better.completion().len(), worse.completion().len()],
            reward: [reward[0]?, reward[1]?],
            votes: pair.votes,
        })
    });
    Ok(scored.collect())
}

/// Responses of a probe, in the order of [`probe`]'s reading.
const VARIANTS: usize = 7 + 2 * OPENINGS_WORDS.len();

fn variants(pair: &Pair) -> [String; VARIANTS] {
    let (better, worse) = (pair.better.as_str(), pair.worse.as_str());
    let [few, more] = OPENINGS_WORDS;
    [
        better.to_owned(),
        better.to_owned(),
        format!("{better} "),
        format!("{worse} "),
        String::new(),
        first_half(better).to_owned(),
        twice(better),
        opening(better, few).to_owned(),
        opening(worse, few).to_owned(),
        opening(better, more).to_owned(),
        opening(worse, more).to_owned(),
    ]
}

fn probe(loaded: &Loaded, kept: &[(&Pair, &ScoredPair)], ui: &Ui) -> CommandResult<Vec<ProbedPair>> {
    let n = kept.len().min(PROBED_MAX);
    let probed: Vec<(&Pair, &ScoredPair)> = (0..n).map(|i| kept[i * kept.len() / n]).collect();
    // From the last to the first and the worse response first: another batch, and another place in it.
    let backwards: Vec<&Pair> = probed.iter().rev().map(|(pair, _)| *pair).collect();
    let swapped = encode(loaded, &backwards, |pair| [pair.worse.clone(), pair.better.clone()], ui)?;
    let mut swapped = score(loaded, &swapped, ui)?;
    swapped.reverse();
    let pairs: Vec<&Pair> = probed.iter().map(|(pair, _)| *pair).collect();
    let rewards = score(loaded, &encode(loaded, &pairs, variants, ui)?, ui)?;
    let probes = probed.iter().zip(swapped).zip(rewards).filter_map(|(((pair, scored), swapped), reward)| {
        let margin = |k: usize| Some(reward[k]? - reward[k + 1]?);
        Some(ProbedPair {
            prompt: pair.prompt_id.clone(),
            better: scored.reward[0],
            margin: scored.margin(),
            swapped: swapped[0]? - swapped[1]?,
            identical: margin(0)?,
            spaced: margin(2)?,
            empty: reward[4],
            half: reward[5]?,
            twice: reward[6],
            openings: [margin(7)?, margin(9)?],
        })
    });
    Ok(probes.collect())
}

/// How far other reward models agree, on the pairs that fit all of them.
fn ensemble(
    dirs: &[PathBuf],
    kept: &[(&Pair, &ScoredPair)],
    global: &Global,
    ui: &Ui,
) -> CommandResult<Measured> {
    let pairs: Vec<Pair> = kept.iter().map(|(pair, _)| (*pair).clone()).collect();
    let mut margins = Vec::with_capacity(dirs.len());
    for dir in dirs {
        let mut member = Loaded::reward_model(dir, global)?;
        member.multiply_in(Precision::Auto);
        let scored = score_pairs(&member, &pairs, ui)?;
        margins.push(scored.iter().map(|pair| pair.as_ref().map(ScoredPair::margin)).collect::<Vec<_>>());
    }
    let all: Vec<usize> = (0..kept.len()).filter(|&i| margins.iter().all(|of| of[i].is_some())).collect();
    let shared: Vec<ScoredPair> = all.iter().map(|&i| kept[i].1.clone()).collect();
    let margins: Vec<Vec<f64>> =
        margins.iter().map(|of| all.iter().filter_map(|&i| of[i]).collect()).collect();
    Ok(ensemble_measures(&shared, &margins))
}

/// Writes the acceptance beside the model, if that place can be written to. Another suite, setting or policy is another file.
fn leave_beside(
    args: &EvalArgs,
    suite: &Suite,
    made: &Acceptance,
    ui: &Ui,
) -> CommandResult<Option<PathBuf>> {
    let dir = acceptance::dir_of(&args.model)?;
    let name = shelf::name(suite, &made.evaluation);
    let file = dir.join(format!("{name}-{}.json", short(&made.verdict.policy_hash)));
    let made_dir = fs::create_dir_all(&dir).map_err(CommandError::failed);
    match made_dir.and_then(|()| Ok(made.write(&file)?)) {
        Ok(()) => Ok(Some(file)),
        Err(error) => {
            ui.warn(&format!("polity train ppo will not know of this: {error}"));
            Ok(None)
        }
    }
}

#[derive(Serialize)]
struct Said<'s> {
    file: &'s Path,
    key: String,
    known: bool,
    #[serde(flatten)]
    evaluation: &'s Evaluation,
    missing: Vec<Value>,
    acceptance: Value,
}

fn tell(
    found: &Found,
    missing: &[Missing],
    made: &Acceptance,
    file: Option<&Path>,
    global: &Global,
) -> CommandResult {
    if global.json {
        return json_to_stdout(&Said {
            file: &found.file,
            key: found.evaluation.key(),
            known: found.known,
            evaluation: &found.evaluation,
            missing: missing
                .iter()
                .map(|one| json!({"name": one.name, "category": one.category, "why": one.why}))
                .collect(),
            acceptance: json!({"file": file, "verdict": made.verdict}),
        });
    }
    to_stdout(|out| {
        print(out, found)?;
        for Missing { name, category, why } in missing {
            let category = category.as_ref().map(|category| format!(" ({category})")).unwrap_or_default();
            for line in polity_train::config::wrap(&format!("not measured: {name}{category}: {why}"), 78) {
                writeln!(out, "  {line}")?;
            }
        }
        if !missing.is_empty() {
            writeln!(out)?;
        }
        gate::print(out, &made.verdict)?;
        match file {
            Some(file) => writeln!(out, "\nacceptance: {}", file.display()),
            None => Ok(()),
        }
    })
}
