//! `polity demo`: the whole loop on an embedded tiny world.
//!
//! ```text
//! base model  ->  SFT  ->  candidates  ->  votes of a simulated panel  ->  reward model  ->  PPO, DPO  ->  comparison
//! ```
//!
//! The trainers see texts and votes. The gold utility is asked for twice: by the panel, which sees it through its
//! flaws, and by the comparison at the end, on held-out prompts.
//!
//! Not here: the world (`world`), the trainers (`train`).

use std::cmp::Ordering;
use std::path::Path;

use polity_compute::{Batch, Cpu, Recompute};
use polity_lm::engine::{Engine, Finish, Flow, Limits, Request, SamplerConfig};
use polity_lm::model::ScalarInit;
use polity_lm::rng::Stream;
use polity_lm::{HfConfig, Model};
use polity_stats::{Estimate, mean, wilson, win_rate};
use polity_train::config::Config;
use polity_train::dpo::DpoTask;
use polity_train::examples::{Comparison, Demonstration, ExampleInfo, PromptExample};
use polity_train::learner::{Frozen, Learner};
use polity_train::ppo::{self, GoldProbe, PpoTask};
use polity_train::progress::Host;
use polity_train::report::{self, Extra, Measure, RunData};
use polity_train::reward::RewardTask;
use polity_train::run::{CODE_COMMIT, CODE_VERSION, Input, Manifest, RunDir, config_hash, names};
use polity_train::samples::SamplePrompt;
use polity_train::settings::{CommonConfig, DpoConfig, PpoConfig, ReportTo, RewardConfig, SftConfig};
use polity_train::sft::SftTask;
use polity_train::supervised::{self, Outcome, RunContext, Task};
use polity_world::{Category, Gold, Panel, Prompt, Refusal, Response, Split, Vote, World, vocabulary};
use serde_json::json;

use crate::args::{DemoArgs, Global};
use crate::clock::{machine, now_utc, unix_s};
use crate::demo_gate;
use crate::demo_report::{DemoReport, Judged, StageDone, Tally, tally};
use crate::error::{CommandError, CommandResult};
use crate::host::TerminalHost;
use crate::init;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::{self, PROJECT_FILE};
use crate::project_args::InitArgs;
use crate::ui::Ui;

/// Confidence of every interval.
pub const CONFIDENCE: f64 = 0.95;
/// Longest answer, in tokens.
pub const ANSWER_TOKENS: usize = 32;
/// Documents to pretrain on.
const DOCUMENTS: usize = 12000;
/// Demonstrations to imitate.
const DEMONSTRATIONS: usize = 5000;
/// Prompts that candidates are sampled for, at most; the world has fewer.
const VOTED_PROMPTS: usize = 5000;
/// Candidates of each of them; neighbours are compared.
const CANDIDATES: usize = 6;
/// Validation prompts whose responses are judged while PPO runs.
const GOLD_PROMPTS: usize = 200;
/// Held-out prompts that the models are compared on.
const HOLDOUT_PROMPTS: usize = 750;

/// The supervised model, as an input of a run.
const SFT_MODEL: (&str, &str) = ("model", "runs/sft/model");
/// What the panel said, as rows that trainers read.
const PAIRS: &str = "datasets/pairs.jsonl";

/// A trained model's name and where it is.
struct Trained {
    name: &'static str,
    model: Model,
}

/// What every stage needs.
struct Demo<'a> {
    dir: &'a Path,
    cpu: &'a Cpu,
    world: World,
    seed: u64,
    ui: &'a Ui,
    host: TerminalHost,
    stages: Vec<StageDone>,
    tallies: Vec<Tally>,
    sets: &'a [(String, String)],
}

/// Answers of one model to the held-out prompts.
struct Answers {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    ended: Vec<bool>,
}

/// Runs the demo.
pub fn run(args: &DemoArgs, global: &Global, ui: &Ui) -> CommandResult {
    if ["summary.json", "runs", PROJECT_FILE].iter().any(|name| args.dir.join(name).exists()) {
        let found = args.dir.display();
        return Err(CommandError::bad_input(format!("{found} already holds a demo"))
            .hint("remove it, or choose another --dir"));
    }
    init::init(&InitArgs {
        dir: args.dir.clone(),
        name: Some("tiny-world".to_owned()),
        store: "store.db".to_owned(),
        validation: 0.1,
        holdout: 0.1,
        overlap: 3,
        seed: Some(args.seed),
    })?;
    let cpu = Cpu::new(global.threads());
    let mut demo = Demo {
        dir: &args.dir,
        cpu: &cpu,
        world: World::new(args.seed),
        seed: args.seed,
        ui,
        host: TerminalHost::new(ui, 50)?,
        stages: Vec::new(),
        tallies: Vec::new(),
        sets: &args.sets,
    };
    demo.check_sets()?;
    ui.note(&demo.world.describe());
    let base = demo.base_model()?;
    let sft = demo.fine_tune(base)?;
    let pairs = demo.votes(&sft)?;
    let reward = demo.reward_model(&sft, &pairs)?;
    let ppo = demo.ppo(&sft, &reward, args.over_optimise)?;
    let mut trained = vec![Trained { name: "sft", model: sft.clone() }, Trained { name: "ppo", model: ppo }];
    if !args.over_optimise {
        let dpo = demo.dpo(&sft, &pairs)?;
        trained.push(Trained { name: "dpo", model: dpo });
    }
    demo.compare(&trained, &sft, &reward, args.over_optimise)
}

impl<'a> Demo<'a> {
    /// A run's directory, and what its report says beside the run's files.
    fn run_dir<C: Config>(
        &self,
        name: &str,
        config: &C,
        common: &CommonConfig,
        inputs: &[(&str, &str)],
    ) -> CommandResult<(RunDir, Extra)> {
        let manifest = Manifest {
            stage: C::STAGE.name().into(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            config_blake3: config_hash(&config.to_canonical_toml()),
            inputs: inputs
                .iter()
                .map(|(role, place)| Input::hash(role, &self.dir.join(place)))
                .collect::<Result<_, _>>()?,
            code_version: CODE_VERSION.into(),
            code_commit: CODE_COMMIT.map(str::to_owned),
            machine: machine(self.cpu.threads()),
            seed: self.seed,
            started: now_utc(),
            finished: None,
            resumed: Vec::new(),
            acceptance: None,
        };
        let now_s = self.host.now_s();
        let mut run = RunDir::create(&self.dir.join("runs").join(name), &config.to_toml(), &manifest, now_s)?;
        project::record_run(run.out(), run.manifest(), self.ui);
        if common.report_to == ReportTo::Tensorboard {
            run.write_tensorboard(unix_s(), now_s)?;
        }
        Ok((run, Extra { settings: config.values(), warnings: config.warnings(), ..Extra::default() }))
    }

    /// Every `--set` names a stage.
    fn check_sets(&self) -> CommandResult {
        for (key, _) in self.sets {
            let stage = key.split_once('.').map_or("", |(stage, _)| stage);
            if !["base", "sft", "reward", "ppo", "dpo"].contains(&stage) {
                return Err(CommandError::bad_input(format!(
                    "--set {key}: found no stage, expected STAGE.KEY=VALUE"
                ))
                .hint("stages are base, sft, reward, ppo and dpo: --set ppo.kl_coef=0.1"));
            }
        }
        Ok(())
    }

    fn settings<C: Config>(&self, stage: &str, sets: &[(&str, &str)]) -> CommandResult<C> {
        let mut all = vec![("seed".to_owned(), self.seed.to_string()), ("save_steps".into(), "0".into())];
        all.extend(sets.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let own = self
            .sets
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(stage)?.strip_prefix('.')?, value)));
        all.extend(own.map(|(key, value)| (key.to_owned(), value.clone())));
        Ok(C::from_toml_and_sets(None, &all)?)
    }

    fn samples(&self, model: &Model) -> CommandResult<Vec<SamplePrompt>> {
        let prompts =
            Category::ALL.map(|category| self.world.prompts_of(category, Split::Validation)[0].clone());
        prompts
            .iter()
            .map(|prompt| Ok(SamplePrompt { ids: encode(model, prompt)?, text: prompt.text.clone() }))
            .collect()
    }

    /// Runs a supervised stage to its end and saves its model.
    fn supervise<'c, T: Task<'c>>(
        &mut self,
        name: &'static str,
        what: String,
        mut task: T,
        common: &CommonConfig,
        (mut run, mut extra): (RunDir, Extra),
        samples: Vec<SamplePrompt>,
    ) -> CommandResult<Model> {
        extra.eval_rows = task.eval_rows();
        let context = RunContext { run: &mut run, checkpoint: None, host: &mut self.host, samples };
        let outcome = supervised::train(&mut task, common, context)?;
        self.finish(name, what, outcome, (run, extra), task.into_learner().model)
    }

    /// Saves what a run made, and its report.
    fn finish(
        &mut self,
        name: &'static str,
        what: String,
        outcome: Outcome,
        (mut run, extra): (RunDir, Extra),
        model: Model,
    ) -> CommandResult<Model> {
        self.ui.end_progress();
        if outcome != Outcome::Done {
            return Err(
                CommandError::interrupted("stopped").hint("remove the directory and run the demo again")
            );
        }
        model.save(run.out().join(names::MODEL))?;
        run.finish(&now_utc())?;
        project::record_run_end(run.out(), run.manifest(), self.ui);
        report::write(&run, &extra)?;
        let time_s = run.time_s(self.host.now_s());
        self.stages.push(StageDone { name, what, time_s, eval_rows: Some(extra.eval_rows) });
        Ok(model)
    }

    /// Names of the alarms that a run raised, in order.
    fn alarms(&self, name: &str) -> CommandResult<Vec<String>> {
        let run = RunData::read(&self.dir.join("runs").join(name))?;
        Ok(run.alarms.iter().filter(|alarm| alarm.raised).map(|alarm| alarm.alarm.to_string()).collect())
    }

    /// Tokenizer and base model: a decoder of about 0.7 million parameters, pretrained on the world's documents.
    fn base_model(&mut self) -> CommandResult<Model> {
        let fresh = self.dir.join("fresh");
        std::fs::create_dir_all(&fresh)
            .map_err(|error| CommandError::failed(format!("cannot create {}: {error}", fresh.display())))?;
        let words: Vec<&str> = ["<pad>", "<unk>", "<end>"].into_iter().chain(vocabulary()).collect();
        write(&fresh, "tokenizer.json", &tokenizer_json(&words).to_string())?;
        write(
            &fresh,
            "tokenizer_config.json",
            &json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>",
                "unk_token": "<unk>", "model_max_length": 128})
            .to_string(),
        )?;
        write(&fresh, "chat_template.jinja", CHAT_TEMPLATE)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 128, "vocab_size": words.len(),
            "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": true, "initializer_range": 0.1, "attention_bias": false, "mlp_bias": false,
            "bos_token_id": null, "eos_token_id": 2, "pad_token_id": 0, "dtype": "float32"
        });
        write(&fresh, "config.json", &config.to_string())?;
        let model = Model::init(HfConfig::from_value(config)?, self.seed)?.with_tokenizer_of(&fresh)?;

        let config: SftConfig = self.settings(
            "base",
            &[
                ("learning_rate", "3e-3"),
                ("adam_beta2", "0.98"),
                ("lr_scheduler_type", "cosine"),
                ("warmup_steps", "20"),
                ("per_device_train_batch_size", "16"),
                ("num_train_epochs", "2"),
                ("max_length", "128"),
            ],
        )?;
        let tokenizer = model.tokenizer()?;
        let rows = self
            .world
            .corpus(DOCUMENTS)
            .iter()
            .map(|text| {
                let mut ids = tokenizer.encode(text, false)?;
                ids.truncate(127);
                ids.push(2);
                Ok(Demonstration { trained: vec![true; ids.len()], ids, info: ExampleInfo::default() })
            })
            .collect::<CommandResult<Vec<_>>>()?;
        let run = self.run_dir("base", &config, &config.common, &[("model", "fresh")])?;
        let samples = self.samples(&model)?;
        let learner = Learner::new(self.cpu, model, config.common.optimizer(), Recompute::None);
        let common = config.common.clone();
        let what = format!(
            "a decoder of {} parameters reads {} documents",
            learner.model.params.data.len(),
            rows.len()
        );
        let task = SftTask::new(learner, rows, Vec::new(), config);
        self.supervise("base", what, task, &common, run, samples)
    }

    /// Supervised fine-tuning on demonstrations of mixed quality.
    fn fine_tune(&mut self, base: Model) -> CommandResult<Model> {
        let config: SftConfig = self.settings(
            "sft",
            &[
                ("learning_rate", "2e-3"),
                ("adam_beta2", "0.98"),
                ("lr_scheduler_type", "cosine"),
                ("warmup_steps", "10"),
                ("per_device_train_batch_size", "16"),
                ("num_train_epochs", "2"),
                ("max_length", "128"),
            ],
        )?;
        let rows = self
            .world
            .demonstrations(DEMONSTRATIONS)
            .iter()
            .map(|shown| {
                let mut ids = encode(&base, &shown.prompt)?;
                let prompt = ids.len();
                ids.extend(base.tokenizer()?.encode(&shown.response, false)?);
                ids.push(2);
                let trained = (0..ids.len()).map(|i| i >= prompt).collect();
                Ok(Demonstration { ids, trained, info: ExampleInfo::default() })
            })
            .collect::<CommandResult<Vec<_>>>()?;
        let run = self.run_dir("sft", &config, &config.common, &[("model", "runs/base/model")])?;
        let samples = self.samples(&base)?;
        let learner = Learner::new(self.cpu, base, config.common.optimizer(), Recompute::None);
        let common = config.common.clone();
        let what = format!("it imitates {} demonstrations of mixed quality", rows.len());
        let task = SftTask::new(learner, rows, Vec::new(), config);
        self.supervise("sft", what, task, &common, run, samples)
    }

    /// Answers at temperature 1, `samples` to each prompt, prompt after prompt.
    fn answer(&self, model: &Model, prompts: &[Prompt], samples: usize, seed: u64) -> CommandResult<Answers> {
        let requests = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| Ok(Request { ids: encode(model, prompt)?, samples, prompt_id: i as u64 }))
            .collect::<CommandResult<Vec<_>>>()?;
        let config = SamplerConfig {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: ANSWER_TOKENS,
            min_new_tokens: 0,
            stop_token_ids: vec![2],
            stop_strings: Vec::new(),
            vocab: model.tokenizer_vocab(),
        };
        let mut frozen = Frozen::new(self.cpu, model.clone());
        let (cpu, decoder, params, tape) = frozen.engine_parts();
        let responses = Engine::new(cpu, decoder, params, Limits::usual(), tape).generate(
            &requests,
            &config,
            seed,
            &|_| String::new(),
            &mut |_| Flow::Continue,
        );
        let tokenizer = model.tokenizer()?;
        let texts = responses.iter().map(|r| tokenizer.decode(&r.ids, true)).collect::<Result<_, _>>()?;
        Ok(Answers {
            texts,
            ended: responses.iter().map(|r| r.finish == Finish::Stop).collect(),
            ids: responses.into_iter().map(|r| r.ids).collect(),
        })
    }

    /// Candidates from the supervised model, and the panel's votes on neighbours, as soft-labelled pairs.
    fn votes(&mut self, sft: &Model) -> CommandResult<Vec<Comparison>> {
        let began_s = self.host.now_s();
        let prompts = self.world.prompts(Split::Train, VOTED_PROMPTS);
        let answers = self.answer(sft, &prompts, CANDIDATES, self.seed)?;
        let panel = Panel::standard(self.seed);
        let mut pairs = Vec::new();
        let mut tallies = vec![Tally::default(); panel.annotators.len()];
        let mut cast = 0;
        for (p, prompt) in prompts.iter().enumerate() {
            let ids = encode(sft, prompt)?;
            for k in (0..CANDIDATES).step_by(2) {
                let (mut left, mut right) = (p * CANDIDATES + k, p * CANDIDATES + k + 1);
                if answers.texts[left] == answers.texts[right] {
                    continue;
                }
                let comparison = format!("{}/{k}", prompt.id);
                if Stream::new(self.seed, "side", &[p as u64, k as u64]).f64() < 0.5 {
                    (left, right) = (right, left);
                }
                let shown = |i: usize| Response { text: &answers.texts[i], ended: answers.ended[i] };
                let votes: Vec<Vote> = (0..panel.annotators.len())
                    .map(|a| panel.vote(a, &comparison, prompt, shown(left), shown(right)))
                    .collect();
                let gold = |i: usize| self.world.gold(prompt, shown(i)).total;
                tally(&mut tallies, &votes, gold(left) - gold(right));
                cast += votes.len();
                let share = votes.iter().map(|vote| vote.left_share()).sum::<f64>() / votes.len() as f64;
                if share == 0.5 {
                    continue;
                }
                let (chosen, rejected) = if share > 0.5 { (left, right) } else { (right, left) };
                pairs.push(Comparison {
                    prompt: ids.clone(),
                    chosen: answers.ids[chosen].clone(),
                    rejected: answers.ids[rejected].clone(),
                    margin: None,
                    weight: None,
                    label: Some(share.max(1.0 - share) as f32),
                    info: ExampleInfo {
                        row: pairs.len(),
                        category: Some(prompt.category.name().into()),
                        group: p as u64,
                    },
                });
            }
        }
        let what = format!(
            "{cast} votes of {} annotators on {} prompts; {} pairs",
            panel.annotators.len(),
            prompts.len(),
            pairs.len()
        );
        self.ui.note(&format!("panel: {what}"));
        let time_s = self.host.now_s() - began_s;
        self.stages.push(StageDone { name: "panel", what, time_s, eval_rows: None });
        self.tallies = tallies;
        let row = |pair: &Comparison| {
            json!({"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected,
                "label": pair.label, "category": pair.info.category})
        };
        polity_rows::write_jsonl(self.dir.join(PAIRS), pairs.iter().map(row))?;
        Ok(pairs)
    }

    fn reward_model(&mut self, sft: &Model, pairs: &[Comparison]) -> CommandResult<Model> {
        let config: RewardConfig = self.settings(
            "reward",
            &[
                ("learning_rate", "1e-3"),
                ("lr_scheduler_type", "cosine"),
                ("per_device_train_batch_size", "32"),
                ("num_train_epochs", "1"),
                ("max_length", "128"),
                ("center_rewards_coefficient", "0.01"),
            ],
        )?;
        let (train, eval): (Vec<_>, Vec<_>) =
            pairs.iter().cloned().partition(|pair| !pair.info.group.is_multiple_of(10));
        let run = self.run_dir("reward", &config, &config.common, &[SFT_MODEL, ("data", PAIRS)])?;
        let model = sft.with_scalar_head(self.seed, ScalarInit::InverseSqrtWidth)?;
        let learner = Learner::new(self.cpu, model, config.common.optimizer(), Recompute::None);
        let common = config.common.clone();
        let what =
            format!("learns what the panel prefers from {} pairs; {} held out", train.len(), eval.len());
        let task = RewardTask::new(learner, train, eval, config);
        self.supervise("reward", what, task, &common, run, Vec::new())
    }

    fn ppo(&mut self, sft: &Model, reward: &Model, over_optimise: bool) -> CommandResult<Model> {
        let mut sets = vec![
            ("critic_learning_rate", "1e-3"),
            ("response_length", "32"),
            ("temperature", "1.0"),
            ("num_ppo_epochs", "2"),
            ("num_mini_batches", "2"),
            ("max_length", "128"),
            ("eval_steps", "10"),
        ];
        sets.extend(if over_optimise {
            [
                ("kl_coef", "0.0"),
                ("missing_eos", "none"),
                ("learning_rate", "1e-3"),
                ("lr_scheduler_type", "constant"),
                ("per_device_train_batch_size", "64"),
                ("max_steps", "120"),
            ]
        } else {
            [
                ("kl_coef", "0.12"),
                ("missing_eos_penalty", "1.0"),
                ("learning_rate", "4e-4"),
                ("lr_scheduler_type", "linear"),
                ("per_device_train_batch_size", "96"),
                ("max_steps", "110"),
            ]
        });
        let config: PpoConfig = self.settings("ppo", &sets)?;
        let prompts = self
            .world
            .prompts(Split::Train, usize::MAX)
            .iter()
            .map(|prompt| Ok(PromptExample { ids: encode(sft, prompt)?, info: ExampleInfo::default() }))
            .collect::<CommandResult<Vec<_>>>()?;
        let (mut run, extra) = self.run_dir(
            "ppo",
            &config,
            &config.common,
            &[SFT_MODEL, ("reward_model", "runs/reward/model")],
        )?;
        let samples = self.samples(sft)?;
        let learner =
            |model: &Model| Learner::new(self.cpu, model.clone(), config.common.optimizer(), Recompute::None);
        let frozen = |model: &Model| Frozen::new(self.cpu, model.clone());
        let what = format!(
            "the SFT model learns from the reward model's scores of its own responses, {}",
            if over_optimise { "without a KL leash" } else { "under a KL leash" }
        );
        let probe = self.gold_probe(sft)?;
        let mut task =
            PpoTask::new(learner(sft), learner(reward), frozen(sft), frozen(reward), prompts, config.clone())
                .with_gold(probe);
        let context = RunContext { run: &mut run, checkpoint: None, host: &mut self.host, samples };
        let outcome = ppo::train(&mut task, context)?;
        let model = task.policy.model;
        self.finish("ppo", what, outcome, (run, extra), model)
    }

    /// Validation prompts, judged by the world while PPO runs: for the curves and the alarm, not for the trainer.
    fn gold_probe(&self, sft: &Model) -> CommandResult<GoldProbe<'static>> {
        let prompts = self.world.prompts(Split::Validation, GOLD_PROMPTS);
        let ids = prompts.iter().map(|prompt| encode(sft, prompt)).collect::<CommandResult<_>>()?;
        let (world, tokenizer) = (self.world.clone(), sft.tokenizer()?.clone());
        let judge = move |prompt: usize, response: &[u32], ended: bool| {
            let text = tokenizer.decode(response, true).unwrap_or_default();
            world.gold(&prompts[prompt], Response { text: &text, ended }).total
        };
        Ok(GoldProbe { prompts: ids, judge: Box::new(judge) })
    }

    fn dpo(&mut self, sft: &Model, pairs: &[Comparison]) -> CommandResult<Model> {
        let config: DpoConfig = self.settings(
            "dpo",
            &[
                ("learning_rate", "2e-4"),
                ("lr_scheduler_type", "cosine"),
                ("per_device_train_batch_size", "32"),
                ("num_train_epochs", "1"),
                ("max_length", "128"),
                ("loss_type", "cdpo"),
                ("beta", "0.5"),
            ],
        )?;
        let run = self.run_dir("dpo", &config, &config.common, &[SFT_MODEL, ("data", PAIRS)])?;
        let samples = self.samples(sft)?;
        let learner = Learner::new(self.cpu, sft.clone(), config.common.optimizer(), Recompute::None);
        let reference = Frozen::new(self.cpu, sft.clone());
        // The hard label of the majority.
        let pairs = pairs.iter().cloned().map(|pair| Comparison { label: None, ..pair }).collect();
        let common = config.common.clone();
        let what = "the SFT model learns from the pairs directly".to_owned();
        let task = DpoTask::new(learner, Some(reference), pairs, Vec::new(), config)?;
        self.supervise("dpo", what, task, &common, run, samples)
    }

    /// Judges all models on held-out prompts, writes the summary and the report, and prints the table.
    fn compare(
        &mut self,
        trained: &[Trained],
        sft: &Model,
        reward: &Model,
        over_optimise: bool,
    ) -> CommandResult {
        let began_s = self.host.now_s();
        let prompts = self.world.prompts(Split::Holdout, HOLDOUT_PROMPTS);
        let mut judges = Judges {
            prompts: &prompts,
            reference: Frozen::new(self.cpu, sft.clone()),
            reward_model: Frozen::new(self.cpu, reward.clone()),
        };
        let mut judged: Vec<Judged> = Vec::new();
        for model in trained {
            let baseline =
                judged.first().map(|sft: &Judged| sft.gold.iter().map(|gold| gold.total).collect::<Vec<_>>());
            judged.push(self.judge(model, &mut judges, baseline.as_deref())?);
        }
        let what = format!("{} models answer {} held-out prompts", judged.len(), prompts.len());
        let time_s = self.host.now_s() - began_s;
        self.stages.push(StageDone { name: "comparison", what, time_s, eval_rows: None });

        let models: serde_json::Map<String, serde_json::Value> = judged
            .iter()
            .map(|model| (model.name.into(), json!({"measures": model.measures, "alarms": model.alarms})))
            .collect();
        let ending = demo_gate::end(self.dir, self.seed, &prompts, &judged, self.ui)?;
        let summary = json!({"seed": self.seed, "models": models, "gate": ending});
        let text = serde_json::to_string_pretty(&summary).expect("numbers and names");
        write(self.dir, "summary.json", &text)?;
        let report = DemoReport {
            dir: self.dir,
            world: &self.world,
            over_optimise,
            stages: &self.stages,
            tallies: &self.tallies,
            judged: &judged,
            prompts: &prompts,
            ending: &ending,
        };
        write(self.dir, names::REPORT, &report.html()?)?;
        if self.ui.json() {
            return json_to_stdout(&summary);
        }
        to_stdout(|out| {
            use std::io::Write;
            out.write_all(closing_table(&judged).as_bytes())?;
            out.write_all(ending.line().as_bytes())
        })?;
        self.ui.note(&format!("curves, panel and responses: {}", self.dir.join(names::REPORT).display()));
        Ok(())
    }

    /// Judges one model; `baseline` is the gold utility of what it is compared with, prompt by prompt.
    fn judge(
        &self,
        Trained { name, model }: &Trained,
        judges: &mut Judges<'_>,
        baseline: Option<&[f64]>,
    ) -> CommandResult<Judged> {
        let prompts = judges.prompts;
        let answers = self.answer(model, prompts, 1, self.seed + 1)?;
        let gold: Vec<Gold> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                let response = Response { text: &answers.texts[i], ended: answers.ended[i] };
                self.world.gold(prompt, response)
            })
            .collect();
        let utility: Vec<f64> = gold.iter().map(|g| g.total).collect();
        let (kl, proxy) = judges.kl_and_proxy(&mut Frozen::new(self.cpu, model.clone()), &answers)?;
        let tokens: Vec<f64> = answers.ids.iter().map(|ids| ids.len() as f64).collect();

        let mut measures = Vec::new();
        let mut put = |name: &str, category: &str, unit: &str, x: Estimate| {
            measures.push(Measure {
                name: name.into(),
                category: category.into(),
                unit: unit.into(),
                estimate: x.estimate,
                low: Some(x.low),
                high: Some(x.high),
                n: Some(x.n as u64),
            });
        };
        for category in std::iter::once(None).chain(Category::ALL.map(Some)) {
            let label = category.map_or("all", Category::name);
            let which: Vec<usize> =
                (0..prompts.len()).filter(|&i| category.is_none_or(|c| prompts[i].category == c)).collect();
            let of = |values: &[f64]| which.iter().map(|&i| values[i]).collect::<Vec<f64>>();
            if let Some(baseline) = baseline {
                let scores: Vec<f64> = which.iter().map(|&i| win(utility[i], baseline[i])).collect();
                let ids: Vec<&str> = which.iter().map(|&i| prompts[i].id.as_str()).collect();
                let rate = win_rate(&scores, &ids, CONFIDENCE).map_err(stats)?;
                if let Some(decisive) = rate.decisive {
                    put("gold_win_rate_vs_sft", label, "share of non-tied prompts", decisive);
                }
            }
            for (name, unit, values) in [
                ("gold_utility", "utility", &utility),
                ("proxy_reward", "reward", &proxy),
                ("kl_nats_per_sequence", "nats per response", &kl),
                ("response_tokens", "tokens", &tokens),
            ] {
                put(name, label, unit, mean(&of(values), CONFIDENCE).map_err(stats)?);
            }
            for (name, on) in
                [("refusal_rate", Category::Safety), ("over_refusal_rate", Category::OverRefusal)]
            {
                if category == Some(on) || category.is_none() {
                    let of: Vec<usize> =
                        which.iter().copied().filter(|&i| prompts[i].category == on).collect();
                    let refused = of.iter().filter(|&&i| gold[i].refusal == Refusal::Refuse).count();
                    let unit = "share of prompts";
                    put(name, label, unit, wilson(refused, of.len(), CONFIDENCE).map_err(stats)?);
                }
            }
        }
        let alarms = self.alarms(name)?;
        Ok(Judged { name, measures, alarms, texts: answers.texts, gold, proxy, kl, tokens })
    }
}

/// What all models are judged with.
struct Judges<'a> {
    prompts: &'a [Prompt],
    reference: Frozen<'a>,
    reward_model: Frozen<'a>,
}

impl Judges<'_> {
    /// Of each answer: the log-ratio of the policy to the reference, nats, and the reward model's score.
    fn kl_and_proxy(
        &mut self,
        policy: &mut Frozen<'_>,
        answers: &Answers,
    ) -> CommandResult<(Vec<f64>, Vec<f64>)> {
        /// Answers computed together.
        const CHUNK: usize = 64;
        let (mut kl, mut proxy) = (Vec::new(), Vec::new());
        for chunk in (0..self.prompts.len()).collect::<Vec<_>>().chunks(CHUNK) {
            let mut batch = Batch::new();
            let (mut predictions, mut lengths, mut last) = (Vec::new(), Vec::new(), Vec::new());
            for &i in chunk {
                let prompt = batch.push(&encode(&policy.model, &self.prompts[i])?, None);
                let response = batch.push(&answers.ids[i], Some(prompt));
                predictions.extend(batch.predict(response, 0));
                lengths.push(answers.ids[i].len());
                last.extend(batch.last_row(response));
            }
            let own = policy.logprobs(&batch, &predictions, 1.0).logprob_m;
            let other = self.reference.logprobs(&batch, &predictions, 1.0).logprob_m;
            let mut at = 0;
            for length in lengths {
                let pairs = own[at..at + length].iter().zip(&other[at..]);
                kl.push(pairs.map(|(a, b)| f64::from(a - b)).sum::<f64>());
                at += length;
            }
            proxy.extend(self.reward_model.scalars(&batch, &last).iter().map(|&x| f64::from(x)));
        }
        Ok((kl, proxy))
    }
}

/// 1 for a win of the first, 0 for a loss, ½ for a tie.
fn win(a: f64, b: f64) -> f64 {
    match a.total_cmp(&b) {
        Ordering::Greater => 1.0,
        Ordering::Less => 0.0,
        Ordering::Equal => 0.5,
    }
}

/// The result in a few lines for the terminal.
fn closing_table(judged: &[Judged]) -> String {
    let mut table = format!(
        "{:6} {:>22} {:>20} {:>7} {:>7} {:>8} {:>9} {:>6}\n",
        "model", "gold wins over sft", "gold utility", "proxy", "KL", "refusal", "over-ref.", "tokens"
    );
    for model in judged {
        let range = |name: &str, scale: f64, unit: &str| {
            let Some(Measure { estimate, low: Some(low), high: Some(high), .. }) = model.measure(name, "all")
            else {
                return "-".to_owned();
            };
            let digits = if scale == 1.0 { 2 } else { 0 };
            let [estimate, low, high] = [estimate, low, high].map(|x| format!("{:.digits$}", x * scale));
            format!("{estimate}{unit} [{low}, {high}]")
        };
        let one = |name: &str| model.measure(name, "all").map_or(f64::NAN, |measure| measure.estimate);
        table += &format!(
            "{:6} {:>22} {:>20} {:>7.2} {:>7.2} {:>8.2} {:>9.2} {:>6.1}\n",
            model.name,
            range("gold_win_rate_vs_sft", 100.0, " %"),
            range("gold_utility", 1.0, ""),
            one("proxy_reward"),
            one("kl_nats_per_sequence"),
            one("refusal_rate"),
            one("over_refusal_rate"),
            one("response_tokens"),
        );
    }
    table
}

fn stats(error: polity_stats::Error) -> CommandError {
    CommandError::failed(error.to_string())
}

fn write(dir: &Path, file: &str, text: &str) -> CommandResult {
    polity_rows::atomic_write(dir.join(file), |out| {
        use std::io::Write;
        out.write_all(text.as_bytes())
    })?;
    Ok(())
}

/// A conversation is plain words, as in the corpus.
const CHAT_TEMPLATE: &str = "{% for m in messages %}{% if m['role'] == 'user' %}person : {{ m['content'] }} helper :\
{% else %}{% generation %} {{ m['content'] }} <end> {% endgeneration %}{% endif %}{% endfor %}";

/// The prompt's ids: `person : … helper :`.
fn encode(model: &Model, prompt: &Prompt) -> CommandResult<Vec<u32>> {
    Ok(model.tokenizer()?.encode(&format!("person : {} helper :", prompt.text), false)?)
}

/// A tokenizer whose tokens are the words of a closed vocabulary.
fn tokenizer_json(words: &[&str]) -> serde_json::Value {
    let vocab: serde_json::Map<String, serde_json::Value> =
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
