//! The truth at the end: each model's answers to held-out prompts, judged by the gold utility, beside what the reward model and the KL say.
//!
//! Every model answers each prompt once, at temperature 1. Wins are of the prompts on which the two answers differ in gold utility.
//!
//! Not here: the gate, which sees none of this.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use polity_compute::{Batch, Cpu};
use polity_lm::Model;
use polity_lm::engine::{Engine, Finish, Flow, Limits, Request, SamplerConfig};
use polity_stats::{Estimate, mean, wilson, win_rate};
use polity_train::learner::Frozen;
use polity_train::report::Measure;
use polity_world::{Category, Gold, Prompt, Refusal, Response, World};

use super::CONFIDENCE;
use super::files::ANSWER_TOKENS;
use crate::error::{CommandError, CommandResult};

/// A trained model, judged on the held-out prompts.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its name: sft, ppo, dpo.
    pub name: &'static str,
    /// What was measured, over all prompts (category "all") and by category.
    pub measures: Vec<Measure>,
    /// Names of alarms that its run raised.
    pub alarms: Vec<String>,
    /// Its response to each.
    pub texts: Vec<String>,
    /// How good each is.
    pub gold: Vec<Gold>,
}

impl Judged {
    /// A measure by name and category.
    pub fn measure(&self, name: &str, category: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name == name && measure.category == category)
    }
}

/// Judges models; the first is what the others are compared with.
pub fn judge_all(
    world: &World,
    prompts: &[Prompt],
    seed: u64,
    models: &[(&'static str, PathBuf)],
    reward_model: &Path,
    threads: usize,
) -> CommandResult<Vec<Judged>> {
    let cpu = Cpu::new(threads);
    let mut judges = Judges {
        cpu: &cpu,
        world,
        seed: seed + 1,
        prompts,
        reference: Frozen::new(&cpu, Model::load(&models[0].1)?),
        reward_model: Frozen::new(&cpu, Model::load(reward_model)?),
    };
    let mut judged: Vec<Judged> = Vec::new();
    for (name, place) in models {
        let baseline =
            judged.first().map(|first| first.gold.iter().map(|gold| gold.total).collect::<Vec<_>>());
        judged.push(judges.judge(name, Model::load(place)?, baseline.as_deref())?);
    }
    Ok(judged)
}

/// Answers of one model.
struct Answers {
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    ended: Vec<bool>,
}

/// What all models are judged with.
struct Judges<'a> {
    cpu: &'a Cpu,
    world: &'a World,
    seed: u64,
    prompts: &'a [Prompt],
    reference: Frozen<'a>,
    reward_model: Frozen<'a>,
}

impl Judges<'_> {
    fn answer(&self, policy: &mut Frozen<'_>) -> CommandResult<Answers> {
        let requests = self
            .prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                Ok(Request { ids: encode(&policy.model, prompt)?, samples: 1, prompt_id: i as u64 })
            })
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
            vocab: policy.model.tokenizer_vocab(),
        };
        let (cpu, decoder, params, tape) = policy.engine_parts();
        let responses = Engine::new(cpu, decoder, params, Limits::usual(), tape).generate(
            &requests,
            &config,
            self.seed,
            &|_| String::new(),
            &mut |_| Flow::Continue,
        );
        let tokenizer = policy.model.tokenizer()?;
        let texts = responses.iter().map(|r| tokenizer.decode(&r.ids, true)).collect::<Result<_, _>>()?;
        Ok(Answers {
            texts,
            ended: responses.iter().map(|r| r.finish == Finish::Stop).collect(),
            ids: responses.into_iter().map(|r| r.ids).collect(),
        })
    }

    /// Judges one model; `baseline` is the gold utility of what it is compared with, prompt by prompt.
    fn judge(&mut self, name: &'static str, model: Model, baseline: Option<&[f64]>) -> CommandResult<Judged> {
        let mut policy = Frozen::new(self.cpu, model);
        let answers = self.answer(&mut policy)?;
        let (kl, proxy) = self.kl_and_proxy(&mut policy, &answers)?;
        let prompts = self.prompts;
        let gold: Vec<Gold> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                let response = Response { text: &answers.texts[i], ended: answers.ended[i] };
                self.world.gold(prompt, response)
            })
            .collect();
        let utility: Vec<f64> = gold.iter().map(|g| g.total).collect();
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
        Ok(Judged { name, measures, alarms: Vec::new(), texts: answers.texts, gold })
    }

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
pub fn closing_table(judged: &[Judged]) -> String {
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

/// The prompt's ids: `person : … helper :`.
pub fn encode(model: &Model, prompt: &Prompt) -> CommandResult<Vec<u32>> {
    Ok(model.tokenizer()?.encode(&format!("person : {} helper :", prompt.text), false)?)
}
