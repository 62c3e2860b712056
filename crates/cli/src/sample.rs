//! `polity sample`: candidates from models, and comparisons of them.
//!
//! Each model answers each prompt `--per-prompt` times through the engine that `polity generate` uses. Of candidates that are nearly the same
//! (`--alike`) the first stays. Of each prompt's candidates `--pairs` comparisons are drawn at random and queued for annotation; with
//! several models, pairs of two models come before pairs of one. Everything is stored in one transaction, with the sampler's
//! settings and the model's hash, and is one event.

use std::collections::BTreeMap;
use std::path::Path;

use polity_lm::engine::Flow;
use polity_rows::Rows;
use polity_stats::Stream;
use polity_store::{
    Added, Content, ImportOptions, Material, NewComparison, NewResponse, Prompt, Take, comparison_id,
    read_import, response_id, similarity,
};
use polity_train::run::Input;
use serde::Serialize;
use serde_json::json;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::generate::{Done, Meter, each_response, response_text, warn_if_cut};
use crate::input;
use crate::model::Loaded;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::SampleArgs;
use crate::settings::{Read, Settings, Uses};
use crate::ui::Ui;

/// Prompts fetched at a time.
const PAGE: i64 = 1000;

/// One answer, kept for comparison.
struct Candidate {
    response: NewResponse,
    id: String,
}

/// What was sampled.
#[derive(Clone, Debug, Serialize)]
pub struct Sampled {
    /// What of it is new to the store.
    pub added: Added,
    /// Candidates that were nearly the same as another.
    pub left_out_alike: usize,
    /// The comparisons, new or not, by name.
    #[serde(skip)]
    pub comparisons: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &SampleArgs, global: &Global, ui: &Ui) -> CommandResult {
    check(args)?;
    let project = Project::open(&args.project)?;
    let sampled = sample(&project, args, global, ui)?;
    if sampled.left_out_alike > 0 {
        ui.note(&format!(
            "{} candidates were nearly the same as another and were left out",
            sampled.left_out_alike
        ));
    }
    if global.json {
        return json_to_stdout(&sampled);
    }
    to_stdout(|out| {
        use std::io::Write;
        let added = &sampled.added;
        writeln!(out, "responses    {:>8} new {:>8} known", added.responses, added.responses_known)?;
        writeln!(out, "comparisons  {:>8} new {:>8} known", added.comparisons, added.comparisons_known)
    })
}

/// What a model is called in the store: a project's own by its place there, so that the same one is called the same wherever the project is.
pub fn name_of(project: &Project, dir: &Path) -> CommandResult<String> {
    let place = project.place(dir)?;
    Ok(if Path::new(&place).is_relative() { place } else { dir.to_string_lossy().into_owned() })
}

/// Samples, and stores all of it or nothing.
pub fn sample(project: &Project, args: &SampleArgs, global: &Global, ui: &Ui) -> CommandResult<Sampled> {
    let (prompts, overlap) = prompts(args, project)?;
    let mut candidates: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
    let mut alike = 0;
    let mut models = Vec::new();
    let mut seed = 0;
    for dir in &args.models {
        let hash = Input::hash("model", dir)?.blake3;
        let mut loaded = Loaded::language_model(dir, "sample", global)?;
        let mut sets = args.sets.clone();
        sets.push(("n".to_owned(), args.per_prompt.to_string()));
        let Read { settings, warnings } = Settings::read(Uses::Generate, dir, &loaded.model, &sets)?;
        warnings.iter().for_each(|warning| ui.warn(warning));
        seed = settings.seed;
        loaded.multiply_in(settings.precision);
        loaded.model.tokenizer()?;
        let name = name_of(project, dir)?;
        alike += answers(args, &loaded, &settings, &prompts, (&name, &hash), &mut candidates, ui)?;
        models.push(json!({"name": name, "hash": hash}));
    }
    let material = compare(args, &prompts, candidates, overlap, seed);
    let comparisons: Vec<String> =
        material.comparisons.iter().map(|new| comparison_id(&new.responses[0], &new.responses[1])).collect();
    let body = json!({
        "models": models, "prompts": prompts.len(), "per_prompt": args.per_prompt,
        "responses": material.responses.len(), "comparisons": comparisons.len(), "left_out_alike": alike,
        "settings": args.sets, "seed": seed,
    });
    let added = project.store().add_sampled(material, seed, body, project.actor(), unix_ms());
    Ok(Sampled { added: project.wait(added)?, left_out_alike: alike, comparisons })
}

/// What flags alone can get wrong.
pub fn check(args: &SampleArgs) -> CommandResult {
    if !(0.0..=1.0).contains(&args.alike) {
        return Err(CommandError::bad_input(format!(
            "--alike is {}; expected a share from 0 to 1",
            args.alike
        )));
    }
    if args.per_prompt * args.models.len() < 2 {
        return Err(CommandError::bad_input(
            "one candidate for each prompt leaves nothing to compare; expected --per-prompt 2 or a second --model",
        ));
    }
    Ok(())
}

/// The prompts to answer, with text, and the judgements wanted for a comparison.
fn prompts(args: &SampleArgs, project: &Project) -> CommandResult<(Vec<Prompt>, i64)> {
    let store = project.store();
    let overlap = project.wait(store.project())?.policy.overlap;
    let mut prompts = Vec::new();
    if let Some(file) = &args.prompts {
        let options = ImportOptions {
            take: Take::Prompts,
            format: None,
            category: String::new(),
            wanted: overlap,
            errors_max: 1,
        };
        let parsed = read_import(file, &options)?;
        if let Some(error) = parsed.errors.first() {
            return Err(CommandError::bad_input(error.clone())
                .hint("polity import prompts FILE --dry-run names every such row"));
        }
        let ids: Vec<String> =
            parsed.material.prompts.iter().map(|p| polity_store::prompt_id(&p.content)).collect();
        project.wait(store.import(parsed, project.actor(), unix_ms()))?;
        for id in ids {
            prompts.push(project.wait(store.prompt(&id))?);
        }
    } else {
        loop {
            let after = prompts.last().map_or(String::new(), |prompt: &Prompt| prompt.id.clone());
            let page = project.wait(store.prompts(&after, PAGE))?;
            if page.is_empty() {
                break;
            }
            prompts.extend(page);
        }
    }
    prompts.retain(|prompt| matches!(prompt.content, Content::Text(_)));
    if !args.parts.is_empty() {
        prompts.retain(|prompt| args.parts.contains(&prompt.part));
        if prompts.is_empty() {
            let parts: Vec<&str> = args.parts.iter().map(|part| part.name()).collect();
            return Err(CommandError::bad_input(format!(
                "no prompt with text is in part {}",
                parts.join(" or ")
            ))
            .hint("a prompt's part is fixed by its text and by the shares of polity init"));
        }
    }
    if prompts.is_empty() {
        return Err(CommandError::bad_input("the project has no prompts with text")
            .hint("polity import prompts FILE brings some in, as does --prompts FILE"));
    }
    Ok((prompts, overlap))
}

/// Adds one model's candidates; returns how many were left out.
fn answers(
    args: &SampleArgs,
    loaded: &Loaded,
    settings: &Settings,
    prompts: &[Prompt],
    (name, hash): (&str, &str),
    candidates: &mut BTreeMap<usize, Vec<Candidate>>,
    ui: &Ui,
) -> CommandResult<usize> {
    // The engine's prompts are read as those of a file, so that both are encoded by the same code.
    let mut lines = Vec::new();
    for prompt in prompts {
        let Content::Text(text) = &prompt.content else { continue };
        let key = if matches!(text, polity_rows::Text::Plain(_)) { "prompt" } else { "messages" };
        serde_json::to_writer(&mut lines, &json!({key: text})).map_err(CommandError::failed)?;
        lines.push(b'\n');
    }
    let rows = Rows::from_reader("the project's prompts", std::io::Cursor::new(lines))?;
    let encoded = input::prompts(rows, loaded, ui)?;
    warn_if_cut(&encoded, settings, loaded, ui);
    let sampler = json!(Sampler::of(settings)).to_string();
    let mut meter = Meter::new(ui, (encoded.len() * settings.samples) as u64);
    let mut alike = 0;
    let done = each_response(loaded, settings, &encoded, &mut meter, &mut |index, response| {
        let text = response_text(loaded, settings, response)?;
        if text.trim().is_empty() {
            alike += 1;
            return Ok(Flow::Continue);
        }
        let there = candidates.entry(index).or_default();
        if there.iter().any(|other| similarity(&other.response.content.words(), &text) >= args.alike) {
            alike += 1;
            return Ok(Flow::Continue);
        }
        let content = match &prompts[index].content {
            Content::Text(polity_rows::Text::Messages(_)) => {
                Content::Text(polity_rows::Text::Messages(vec![polity_rows::Message::new("assistant", text)]))
            }
            _ => Content::plain(text),
        };
        let response = NewResponse {
            prompt_id: prompts[index].id.clone(),
            content,
            model: name.to_owned(),
            model_hash: Some(hash.to_owned()),
            sampler: Some(sampler.clone()),
            sample_index: Some(response.sample as i64),
            origin: "sample".to_owned(),
        };
        let id = response_id(&response.prompt_id, &response.content, &response.model);
        there.push(Candidate { response, id });
        Ok(Flow::Continue)
    })?;
    meter.finish();
    match done {
        Done::Finished => Ok(alike),
        Done::Interrupted => Err(CommandError::interrupted("stopped; nothing was stored")),
    }
}

/// The sampler's settings, for the record.
#[derive(serde::Serialize)]
struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    max_new_tokens: usize,
    min_new_tokens: usize,
    seed: u64,
}

impl Sampler {
    fn of(settings: &Settings) -> Sampler {
        let s = &settings.sampler;
        Sampler {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            max_new_tokens: s.max_new_tokens,
            min_new_tokens: s.min_new_tokens,
            seed: settings.seed,
        }
    }
}

/// Draws comparisons among each prompt's candidates.
fn compare(
    args: &SampleArgs,
    prompts: &[Prompt],
    candidates: BTreeMap<usize, Vec<Candidate>>,
    overlap: i64,
    seed: u64,
) -> Material {
    let mut material = Material::default();
    for (index, candidates) in candidates {
        let mut stream = Stream::new(seed, "pairs", index as u64);
        let mut pairs = Vec::new();
        for (i, one) in candidates.iter().enumerate() {
            for other in &candidates[i + 1..] {
                let one_model = one.response.model == other.response.model;
                pairs.push((one_model, stream.next_u64(), [one.id.clone(), other.id.clone()]));
            }
        }
        pairs.sort();
        for (_, _, responses) in pairs.into_iter().take(args.pairs) {
            material.comparisons.push(NewComparison {
                prompt_id: prompts[index].id.clone(),
                responses,
                wanted: overlap,
                queued: true,
                origin: "sample".to_owned(),
            });
        }
        material.responses.extend(candidates.into_iter().map(|candidate| candidate.response));
    }
    material
}
