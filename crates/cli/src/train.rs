//! `polity train`: settings, data and a model go in, a run directory comes out.
//!
//! Everything is read and checked before the run's directory is made, so a refused run leaves nothing behind.
//!
//! Not here: the trainers and the run's files (`train`).

use std::path::{Path, PathBuf};

use polity_compute::{Cpu, Head, Isa, Recompute};
use polity_lm::model::ScalarInit;
use polity_lm::{Adapter, ChatTemplate, Model, adapter};
use polity_rows::{CompletionRow, FromRow, PreferenceRow, PromptRow};
use polity_train::TrainError;
use polity_train::config::Config;
use polity_train::data::{Encoder, Preflight, hold_out, shared_prompts};
use polity_train::dpo::DpoTask;
use polity_train::examples::ExampleInfo;
use polity_train::learner::{Frozen, Learner};
use polity_train::metrics::Metrics;
use polity_train::ppo::{self, GoldProbe, PpoTask};
use polity_train::report::{self, Extra};
use polity_train::reward::RewardTask;
use polity_train::run::{
    CODE_COMMIT, CODE_VERSION, Checkpoint, Input, Manifest, RewardAcceptance, RunDir, config_hash, names,
};
use polity_train::samples::SamplePrompt;
use polity_train::settings::{
    CommonConfig, CriticInit, DpoConfig, HeadInit, PpoConfig, Precision, ReportTo, RewardConfig, SftConfig,
};
use polity_train::sft::SftTask;
use polity_train::supervised::{self, Outcome, RunContext, Task};
use serde_json::json;

use crate::acceptance;
use crate::args::{Global, PpoArgs, TrainArgs, TrainVerb};
use crate::clock::{machine, now_utc, unix_s};
use crate::error::{CommandError, CommandResult};
use crate::host::{self, TerminalHost};
use crate::output::json_to_stdout;
use crate::project;
use crate::ui::Ui;

/// What a run left.
#[derive(Debug)]
pub struct Trained {
    /// Its model.
    pub model: PathBuf,
    /// Its page.
    pub report: PathBuf,
    /// The last step and its numbers.
    pub last: Option<(u64, Metrics)>,
}

/// Runs the verb.
pub fn run(verb: &TrainVerb, global: &Global, ui: &Ui) -> CommandResult {
    let Trained { model, report, last } = train(verb, global, ui)?;
    if ui.json() {
        let metrics = last.map(|(step, metrics)| json!({"step": step, "metrics": metrics}));
        let run = &verb.args().out;
        return json_to_stdout(&json!({"run": run, "model": model, "report": report, "last": metrics}));
    }
    ui.note(&format!("wrote {} and {}", model.display(), report.display()));
    Ok(())
}

/// Runs a trainer.
pub fn train(verb: &TrainVerb, global: &Global, ui: &Ui) -> CommandResult<Trained> {
    match verb {
        TrainVerb::Sft(args) => sft(args, global, ui),
        TrainVerb::Reward(args) => reward(args, global, ui),
        TrainVerb::Dpo(args) => dpo(args, global, ui),
        TrainVerb::Ppo(args) => ppo(args, None, global, ui),
    }
}

/// Settings, model and processor of a run.
struct Setup<C> {
    config: C,
    model: Model,
    template: Option<ChatTemplate>,
    cpu: Cpu,
    threads: usize,
}

impl<C: Config> Setup<C> {
    fn read<'u>(
        args: &TrainArgs,
        global: &Global,
        ui: &'u Ui,
        common: impl Fn(&C) -> &CommonConfig,
    ) -> CommandResult<(Self, Findings<'u>)> {
        let text = match &args.config {
            Some(file) => Some((file.clone(), read_text(file)?)),
            None => None,
        };
        let file = text.as_ref().map(|(file, text)| (file.as_path(), text.as_str()));
        let config = C::from_toml_and_sets(file, &args.sets)?;
        let extra = Extra { settings: config.values(), ..Extra::default() };
        let mut findings = Findings { ui, extra };
        config.warnings().into_iter().for_each(|warning| findings.warn(warning));
        let threads = match common(&config).threads {
            0 => global.threads(),
            threads => threads,
        };
        if common(&config).use_peft {
            expect_whole_model(&args.model)?;
        }
        let model = Model::load(&args.model)?;
        let template = match &model.tokenizer {
            Some(tokenizer) => ChatTemplate::load(&args.model, tokenizer.special_texts())?,
            None => None,
        };
        let cpu = Cpu::new(threads);
        let precision = common(&config).precision.with(cpu.isa(), model.layout.parameter_count());
        // What "auto" came to is written down, so that a run goes on in it or not at all.
        let resolved = Precision::from(precision);
        let config = match common(&config).precision {
            Precision::Auto => {
                let set = ("precision".to_owned(), resolved.name().to_owned());
                C::from_toml_and_sets(file, &[&args.sets[..], &[set]].concat())?
            }
            _ => config,
        };
        match (precision, cpu.isa()) {
            (polity_compute::Precision::Bf16, Isa::Avx512Bf16 | Isa::Amx) => {
                findings.note("matrix products in bf16; weights, sums, gradients and moments in f32".into())
            }
            (polity_compute::Precision::Bf16, _) => findings.warn(
                "precision = \"bf16\" on a processor without bf16 instructions: exact, but slower than \"f32\"".into(),
            ),
            (polity_compute::Precision::F32, _) => {}
        }
        let cpu = cpu.with_precision(precision);
        Ok((Self { config, model, template, cpu, threads }, findings))
    }

    fn encoder(&self) -> Encoder<'_> {
        Encoder::new(&self.model, self.template.as_ref())
    }

    /// Makes the run's directory, or opens it to go on.
    fn open_run(
        &self,
        args: &TrainArgs,
        ui: &Ui,
        common: &CommonConfig,
        inputs: &[(&str, &Path)],
        acceptance: Option<RewardAcceptance>,
    ) -> CommandResult<(RunDir, Option<Checkpoint>)> {
        let mut inputs: Vec<Input> =
            inputs.iter().map(|(role, path)| Input::hash(role, path)).collect::<Result<_, _>>()?;
        inputs.iter_mut().for_each(|input| input.dataset = project::dataset_of(input));
        let manifest = Manifest {
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            stage: C::STAGE.name().into(),
            config_blake3: config_hash(&self.config.to_canonical_toml()),
            inputs,
            code_version: CODE_VERSION.into(),
            code_commit: CODE_COMMIT.map(str::to_owned),
            machine: machine(self.threads),
            seed: common.seed,
            started: now_utc(),
            finished: None,
            resumed: Vec::new(),
            acceptance,
        };
        let (mut run, checkpoint) = if args.resume {
            let resumed = RunDir::resume(&args.out, &self.config.to_toml(), &manifest, &now_utc(), 0.0)?;
            resumed.notes.iter().for_each(|note| ui.note(note));
            (resumed.run, resumed.checkpoint)
        } else {
            let run = RunDir::create(&args.out, &self.config.to_toml(), &manifest, 0.0)?;
            project::record_run(&args.out, run.manifest(), ui);
            (run, None)
        };
        if common.report_to == ReportTo::Tensorboard {
            run.write_tensorboard(unix_s(), 0.0)?;
        }
        Ok((run, checkpoint))
    }
}

fn read_text(file: &Path) -> CommandResult<String> {
    std::fs::read_to_string(file)
        .map_err(|error| CommandError::bad_input(format!("cannot read {}: {error}", file.display())))
}

fn recompute(common: &CommonConfig) -> Recompute {
    if common.gradient_checkpointing { Recompute::Layer } else { Recompute::None }
}

/// What is known before the run: said to the person, and kept for the report.
struct Findings<'u> {
    ui: &'u Ui,
    extra: Extra,
}

impl Findings<'_> {
    fn note(&mut self, text: String) {
        self.ui.note(&format!("pre-flight: {text}"));
        self.extra.preflight.push(text);
    }

    fn warn(&mut self, text: String) {
        self.ui.warn(&text);
        self.extra.warnings.push(text);
    }

    fn tell(&mut self, report: &Preflight) {
        self.note(report.to_string());
        report.warnings().into_iter().for_each(|warning| self.warn(warning));
    }
}

/// Training and evaluation examples: from two files, or one file split by prompt.
fn examples<R: FromRow, E>(
    args: &TrainArgs,
    common: &CommonConfig,
    findings: &mut Findings<'_>,
    what: &str,
    encode: impl Fn(&[R], &str) -> Result<(Vec<E>, Preflight), TrainError>,
    info: impl Fn(&E) -> &ExampleInfo,
) -> CommandResult<(Vec<E>, Vec<E>)> {
    let rows: Vec<R> = polity_rows::read(&args.data)?;
    let (train, report) = encode(&rows, &format!("training {what}"))?;
    findings.tell(&report);
    let Some(file) = &args.eval_data else {
        let (train, eval) = hold_out(train, common.eval_fraction, common.seed, &info);
        if common.eval_fraction > 0.0 {
            findings.note(format!("{} {what} to train on, {} held out", train.len(), eval.len()));
            if eval.is_empty() || train.is_empty() {
                let found = format!("{} to train on, {} held out", train.len(), eval.len());
                return Err(CommandError::bad_input(format!("eval_fraction leaves {found}"))
                    .hint("choose another share, or give --eval-data"));
            }
        }
        findings.extra.eval_rows = eval.len();
        return Ok((train, eval));
    };
    let rows: Vec<R> = polity_rows::read(file)?;
    let (eval, report) = encode(&rows, &format!("evaluation {what}"))?;
    findings.tell(&report);
    findings.extra.eval_rows = eval.len();
    let shared = shared_prompts(train.iter().map(&info), eval.iter().map(&info));
    if shared > 0 {
        findings.warn(format!(
            "{shared} of {} evaluation {what} have a prompt that is also trained on",
            eval.len()
        ));
    }
    Ok((train, eval))
}

/// The first few prompts, as ids and text.
fn sample_prompts<'a>(
    model: &Model,
    count: usize,
    prompts: impl Iterator<Item = &'a [u32]>,
) -> CommandResult<Vec<SamplePrompt>> {
    let Some(tokenizer) = &model.tokenizer else { return Ok(Vec::new()) };
    let distinct = {
        let mut seen = std::collections::HashSet::new();
        prompts.filter(move |ids| !ids.is_empty() && seen.insert(ids.to_vec())).take(count)
    };
    distinct.map(|ids| Ok(SamplePrompt { ids: ids.to_vec(), text: tokenizer.decode(ids, false)? })).collect()
}

fn sft(args: &TrainArgs, global: &Global, ui: &Ui) -> CommandResult<Trained> {
    let (setup, mut findings) = Setup::read(args, global, ui, |config: &SftConfig| &config.common)?;
    expect_language_model(&args.model, &setup.model)?;
    let common = &setup.config.common;
    let encode =
        |rows: &[CompletionRow], what: &str| setup.encoder().demonstrations(rows, &setup.config, what);
    let (train, eval) = match setup.config.train_on_chosen {
        false => examples(args, common, &mut findings, "rows", encode, |row| &row.info)?,
        true => {
            let encode = |rows: &[PreferenceRow], what: &str| {
                let chosen: Vec<_> = rows.iter().cloned().map(PreferenceRow::into_chosen).collect();
                encode(&chosen, what)
            };
            examples(args, common, &mut findings, "rows", encode, |row| &row.info)?
        }
    };
    let shown = if eval.is_empty() { &train } else { &eval };
    let samples = sample_prompts(
        &setup.model,
        common.sample_prompts,
        shown.iter().map(|row| {
            let first = row.trained.iter().position(|&t| t).unwrap_or(0);
            &row.ids[..first]
        }),
    )?;
    let adapter = new_adapter(&setup.model, args, common)?;
    let (run, checkpoint) = setup.open_run(args, ui, common, &inputs(args), None)?;
    let learner = learner(&setup.cpu, setup.model, adapter, common);
    let task = SftTask::new(learner, train, eval, setup.config.clone());
    supervise(task, common, findings, run, checkpoint, samples)
}

fn reward(args: &TrainArgs, global: &Global, ui: &Ui) -> CommandResult<Trained> {
    let (setup, mut findings) = Setup::read(args, global, ui, |config: &RewardConfig| &config.common)?;
    let (common, config) = (&setup.config.common, &setup.config);
    let encode = |rows: &[PreferenceRow], what: &str| setup.encoder().comparisons(rows, common, what);
    let (train, eval) = examples(args, common, &mut findings, "pairs", encode, |pair| &pair.info)?;
    let model = with_head(setup.model.clone(), config.head_init, common.seed)?;
    let adapter = new_adapter(&model, args, common)?;
    let (run, checkpoint) = setup.open_run(args, ui, common, &inputs(args), None)?;
    let learner = learner(&setup.cpu, model, adapter, common);
    let task = RewardTask::new(learner, train, eval, config.clone());
    supervise(task, common, findings, run, checkpoint, Vec::new())
}

/// A reward model keeps its head; a language model gets a new one.
fn with_head(model: Model, init: HeadInit, seed: u64) -> CommandResult<Model> {
    if model.config.head == Head::Scalar {
        return Ok(model);
    }
    let how = match init {
        HeadInit::Transformers | HeadInit::Zero => ScalarInit::InitializerRange,
        HeadInit::Scaled => ScalarInit::InverseSqrtWidth,
    };
    let mut model = model.with_scalar_head(seed, how)?;
    if init == HeadInit::Zero {
        zero_head(&mut model);
    }
    Ok(model)
}

fn zero_head(model: &mut Model) {
    let range = model.layout.specs[model.layout.head].range();
    model.params.data[range].fill(0.0);
}

fn dpo(args: &TrainArgs, global: &Global, ui: &Ui) -> CommandResult<Trained> {
    let (setup, mut findings) = Setup::read(args, global, ui, |config: &DpoConfig| &config.common)?;
    expect_language_model(&args.model, &setup.model)?;
    let (common, config) = (&setup.config.common, &setup.config);
    let encode = |rows: &[PreferenceRow], what: &str| setup.encoder().comparisons(rows, common, what);
    let (train, eval) = examples(args, common, &mut findings, "pairs", encode, |pair| &pair.info)?;
    let shown = if eval.is_empty() { &train } else { &eval };
    let samples =
        sample_prompts(&setup.model, common.sample_prompts, shown.iter().map(|pair| pair.prompt.as_slice()))?;
    let adapter = new_adapter(&setup.model, args, common)?;
    let (run, checkpoint) = setup.open_run(args, ui, common, &inputs(args), None)?;
    let needs_reference = config.objective().map_err(TrainError::from)?.needs_reference();
    let reference = needs_reference.then(|| Frozen::new(&setup.cpu, setup.model.clone()));
    let learner = learner(&setup.cpu, setup.model, adapter, common);
    let task = DpoTask::new(learner, reference, train, eval, config.clone())?;
    supervise(task, common, findings, run, checkpoint, samples)
}

/// Runs PPO, watched by whoever knows what responses are really worth, if there is somebody.
pub fn ppo(args: &PpoArgs, gold: Option<GoldProbe<'_>>, global: &Global, ui: &Ui) -> CommandResult<Trained> {
    let PpoArgs { train: args, reward_model: reward_dir, override_acceptance } = args;
    let (setup, mut findings) = Setup::read(args, global, ui, |config: &PpoConfig| &config.common)?;
    expect_language_model(&args.model, &setup.model)?;
    let (common, config) = (&setup.config.common, &setup.config);
    let reward_model = Model::load(reward_dir)?;
    if reward_model.config.head != Head::Scalar {
        return Err(CommandError::bad_input(format!(
            "{}: found a language model, expected a reward model (num_labels = 1)",
            reward_dir.display()
        ))
        .hint("polity train reward makes one from comparisons"));
    }
    expect_one_tokenizer((&args.model, &setup.model), (reward_dir, &reward_model))?;
    let acceptance = acceptance::before_ppo(reward_dir, &args.out, override_acceptance.as_deref(), ui)?;
    acceptance.warnings.into_iter().for_each(|warning| findings.warn(warning));
    let rows: Vec<PromptRow> = polity_rows::read(&args.data)?;
    let room = config.response_length;
    let (prompts, report) = setup.encoder().prompts(&rows, common, room, "prompts")?;
    findings.tell(&report);
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0) + room;
    if longest > reward_model.config.positions_max {
        return Err(CommandError::bad_input(format!(
            "a prompt and its response take up to {longest} tokens, the reward model {} has {} positions",
            reward_dir.display(),
            reward_model.config.positions_max
        ))
        .hint("lower response_length or max_length"));
    }
    let samples = sample_prompts(
        &setup.model,
        common.sample_prompts,
        prompts.iter().map(|prompt| prompt.ids.as_slice()),
    )?;
    let mut all_inputs = inputs(args);
    all_inputs.push(("reward_model", reward_dir));
    let adapter = new_adapter(&setup.model, args, common)?;
    let (mut run, checkpoint) = setup.open_run(args, ui, common, &all_inputs, acceptance.known)?;

    let critic = match config.critic_init {
        CriticInit::RewardModel => reward_model.clone(),
        CriticInit::Policy => {
            let mut critic = setup.model.with_scalar_head(common.seed, ScalarInit::InitializerRange)?;
            zero_head(&mut critic);
            critic
        }
    };
    let reference = Frozen::new(&setup.cpu, setup.model.clone());
    let mut task = PpoTask::new(
        learner(&setup.cpu, setup.model, adapter, common),
        learner(&setup.cpu, critic, None, common),
        reference,
        Frozen::new(&setup.cpu, reward_model),
        prompts,
        config.clone(),
    );
    if let Some(gold) = gold {
        task = task.with_gold(gold);
    }
    let mut host = LastNumbers::new(TerminalHost::new(ui, common.logging_steps)?);
    let context = RunContext { run: &mut run, checkpoint, host: &mut host, samples };
    let outcome = ppo::train(&mut task, context)?;
    finish(findings, &mut run, &task.policy, outcome, host)
}

fn inputs(args: &TrainArgs) -> Vec<(&'static str, &Path)> {
    let mut inputs = vec![("model", args.model.as_path()), ("data", args.data.as_path())];
    inputs.extend(args.eval_data.as_deref().map(|file| ("eval_data", file)));
    inputs
}

fn expect_language_model(dir: &Path, model: &Model) -> CommandResult {
    if model.config.head != Head::Scalar {
        return Ok(());
    }
    Err(CommandError::bad_input(format!(
        "{}: found a reward model, expected a language model",
        dir.display()
    ))
    .hint("start from the model that the reward model was made from"))
}

/// An adapter of an adapter has no form on disk.
fn expect_whole_model(dir: &Path) -> CommandResult {
    if !dir.join("config.json").exists() && dir.join(adapter::CONFIG_FILE).exists() {
        return Err(CommandError::bad_input(format!(
            "{}: found an adapter, expected the directory of a whole model to make a new adapter of",
            dir.display()
        ))
        .hint("start from RUN/model, which is the merged model of the run that made the adapter"));
    }
    Ok(())
}

/// The adapter that the settings ask for.
fn new_adapter(model: &Model, args: &TrainArgs, common: &CommonConfig) -> CommandResult<Option<Adapter>> {
    let Some(lora) = common.lora() else { return Ok(None) };
    // From the root, so that the adapter finds its base from wherever it is used on this machine.
    let base = args.model.canonicalize().unwrap_or_else(|_| args.model.clone());
    Ok(Some(Adapter::new(model, lora, &base.to_string_lossy(), common.seed)?))
}

fn learner<'c>(cpu: &'c Cpu, model: Model, adapter: Option<Adapter>, common: &CommonConfig) -> Learner<'c> {
    let (optimizer, recompute) = (common.optimizer(), recompute(common));
    match adapter {
        None => Learner::new(cpu, model, optimizer, recompute),
        Some(adapter) => Learner::with_adapter(cpu, model, adapter, optimizer, recompute),
    }
}

/// The reward model reads the policy's ids, so an id must mean the same to both.
fn expect_one_tokenizer(policy: (&Path, &Model), reward: (&Path, &Model)) -> CommandResult {
    let difference = match (&policy.1.tokenizer, &reward.1.tokenizer) {
        _ if policy.1.config.vocab != reward.1.config.vocab => {
            let of = |(dir, model): (&Path, &Model)| format!("{} in {}", model.config.vocab, dir.display());
            format!("found a vocabulary of {} and one of {}", of(reward), of(policy))
        }
        (Some(ours), Some(theirs)) => match ours.first_difference(theirs) {
            None => return Ok(()),
            Some(id) => {
                let of = |(dir, model): (&Path, &Model)| {
                    let text = model.tokenizer.as_ref().and_then(|t| t.token_text(id)).unwrap_or_default();
                    format!("{text:?} in {}", dir.display())
                };
                format!("found token {id} as {} and {}", of(reward), of(policy))
            }
        },
        _ => return Ok(()),
    };
    Err(CommandError::bad_input(format!("{difference}, expected one tokenizer for both models"))
        .hint("train the reward model from the same base model"))
}

/// Runs a trainer without rollouts and writes what it made.
fn supervise<'c, T: Task<'c>>(
    mut task: T,
    common: &CommonConfig,
    findings: Findings<'_>,
    mut run: RunDir,
    checkpoint: Option<Checkpoint>,
    samples: Vec<SamplePrompt>,
) -> CommandResult<Trained> {
    let mut host = LastNumbers::new(TerminalHost::new(findings.ui, common.logging_steps)?);
    let context = RunContext { run: &mut run, checkpoint, host: &mut host, samples };
    let outcome = supervised::train(&mut task, common, context)?;
    finish(findings, &mut run, &task.into_learner(), outcome, host)
}

/// Passes everything on and remembers the last step's numbers.
struct LastNumbers {
    inner: TerminalHost,
    last: Option<(u64, Metrics)>,
}

impl LastNumbers {
    fn new(inner: TerminalHost) -> Self {
        Self { inner, last: None }
    }
}

impl polity_train::progress::Host for LastNumbers {
    fn now_s(&self) -> f64 {
        self.inner.now_s()
    }

    fn stop_requested(&self) -> bool {
        self.inner.stop_requested()
    }

    fn event(&mut self, event: polity_train::progress::Event<'_>) {
        if let polity_train::progress::Event::Metrics { step, metrics } = event {
            self.last = Some((step, metrics.clone()));
        }
        self.inner.event(event);
    }
}

/// Writes the model and closes the run, or says how to go on; the report in any case.
fn finish(
    findings: Findings<'_>,
    run: &mut RunDir,
    learner: &Learner<'_>,
    outcome: Outcome,
    host: LastNumbers,
) -> CommandResult<Trained> {
    let Findings { ui, extra } = findings;
    ui.end_progress();
    let dir: PathBuf = run.out().join(names::MODEL);
    if outcome == Outcome::Done {
        learner.model.save(&dir)?;
        if let Some(adapter) = &learner.adapter {
            adapter.save(run.out().join(names::ADAPTER))?;
        }
        run.finish(&now_utc())?;
        project::record_run_end(run.out(), run.manifest(), ui);
    }
    report::write(run, &extra)?;
    let page = run.out().join(names::REPORT);
    match outcome {
        Outcome::Done => {}
        Outcome::Stopped { step } => {
            ui.note(&format!("wrote {}", page.display()));
            return Err(host::stopped(step, &command_without_resume()));
        }
        Outcome::Alarmed { step } => {
            return Err(CommandError::failed(format!(
                "step {step}: an alarm stopped the run, as stop_on_alarm asks; a checkpoint was saved"
            ))
            .hint(format!("see {}", page.display())));
        }
    }
    Ok(Trained { model: dir, report: page, last: host.last })
}

fn command_without_resume() -> String {
    let words: Vec<String> = std::env::args().filter(|word| word != "--resume").collect();
    words.join(" ")
}
