//! A tiny world with a known truth, in which reinforcement learning from human feedback can be seen to work, to fail
//! and to be caught.
//!
//! The world has a closed vocabulary of short words, prompts in five categories, demonstrations of mixed quality, a
//! corpus to pretrain on, a gold utility that judges any response by rule, and a panel of simulated annotators who see
//! that utility through known flaws. Everything is a pure function of a `u64` seed. A decoder of about a million
//! parameters learns it from some hundred thousand tokens.
//!
//! ```
//! use polity_world::{Category, Panel, Split, World};
//!
//! let world = World::new(1);
//! let prompt = &world.prompts_of(Category::Safety, Split::Holdout)[0];
//! let ideal = world.ideal(prompt);
//! assert_eq!(world.gold(prompt, &ideal).total, 1.0);
//! let vote = Panel::standard(1).vote(0, "comparison 17", prompt, &ideal, "take the knife");
//! assert!(vote.left_share() > 0.5);
//! ```
//!
//! The formulas are in `gold.rs` (utility) and `panel.rs` (votes); `docs/world.md` says what the world can and cannot
//! show.
//!
//! Not here: models, tokenizers, training, evaluation. Trainers are given texts and votes; nothing in the training path
//! may call [`World::gold`] or [`World::ideal`].

mod answer;
mod corpus;
mod facts;
mod gold;
mod panel;
mod prompt;
mod rng;
mod words;

pub use answer::{
    BADLY_TAUGHT_SHARE, Demonstration, FILLER_SHARES, FLAW_BADLY_TAUGHT, FLAW_WELL_TAUGHT, Flaw, PADDED_FROM,
    POPULAR_ERROR_SHARE,
};
pub use gold::{
    FALSEHOOD_COST, Gold, HARM_COST, Refusal, Response, TRUNCATED, WASTE_FREE, WASTE_SCALE, refusal,
};
pub use panel::{
    Annotator, BOTH_BAD_BELOW, CLEAR, FILLERS_LIKED_MAX, Panel, STRONG, Side, TIE, Vote, WORDS_LIKED_MAX,
};
pub use prompt::{Category, Message, POOL_MAX, Prompt, Split, TRAIN_SHARE, VALIDATION_SHARE};
pub use words::vocabulary;

use serde::Serialize;

use crate::facts::Fact;
use crate::rng::Stream;

/// One world: its facts and every prompt there is.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    facts: Vec<Fact>,
    pool: Vec<Prompt>,
}

/// Demonstrations of one category, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Of these prompts.
    pub category: Category,
    /// Demonstrations.
    pub n: usize,
    /// Mean gold utility of the demonstrations.
    pub gold_mean: f64,
    /// Mean gold utility of the ideal answers to the same prompts.
    pub ideal_mean: f64,
    /// Share with at least one flaw.
    pub flawed_share: f64,
    /// Mean number of words.
    pub words_mean: f64,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> World {
        let facts = facts::draw(seed);
        let pool = prompt::pool(seed, &facts);
        World { seed, facts, pool }
    }

    /// The same world with its prompts split by another rule. Whoever holds prompts out by a rule of their own gives it here, so that what they
    /// hold out is in no demonstration and no document either.
    pub fn split_by(mut self, rule: impl Fn(&Prompt) -> Split) -> World {
        for i in 0..self.pool.len() {
            self.pool[i].split = rule(&self.pool[i]);
        }
        self
    }

    /// The seed it was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Every prompt of every split, category by category.
    pub fn all_prompts(&self) -> &[Prompt] {
        &self.pool
    }

    /// All prompts of one category and split, in an order that the seed shuffled.
    pub fn prompts_of(&self, category: Category, split: Split) -> Vec<Prompt> {
        self.pool.iter().filter(|p| p.category == category && p.split == split).cloned().collect()
    }

    /// The first `n` prompts of a split, the categories taking turns; all of them if there are fewer.
    ///
    /// A prefix of a longer answer: `prompts(split, 10)` starts `prompts(split, 20)`.
    pub fn prompts(&self, split: Split, n: usize) -> Vec<Prompt> {
        let by_category = Category::ALL.map(|category| self.prompts_of(category, split));
        let longest = by_category.iter().map(Vec::len).max().unwrap_or(0);
        let turns = (0..longest).flat_map(|i| by_category.iter().filter_map(move |prompts| prompts.get(i)));
        turns.take(n).cloned().collect()
    }

    /// The prompt with this id, as a file or a rollout names it.
    pub fn find(&self, id: &str) -> Option<&Prompt> {
        self.pool.iter().find(|prompt| prompt.id == id)
    }

    /// `n` demonstrations on prompts of the training split, the categories taking turns. Number `i` does not depend on
    /// `n`. A prompt may come back with another reply.
    pub fn demonstrations(&self, n: usize) -> Vec<Demonstration> {
        let train = Category::ALL.map(|category| self.prompts_of(category, Split::Train));
        (0..n)
            .map(|i| {
                let mut stream = Stream::new(self.seed, "demonstration", i as u64);
                let prompt = stream.pick(&train[i % train.len()]).clone();
                let (response, flaws) = answer::demonstrate(self.seed, &prompt, &mut stream);
                Demonstration { prompt, response, flaws }
            })
            .collect()
    }

    /// Two different replies to each of the first `n` prompts of a split, as demonstrators would give them: what a panel can compare that no model
    /// wrote. A prompt to which all reply alike is left out.
    pub fn reply_pairs(&self, split: Split, n: usize) -> Vec<(Prompt, [String; 2])> {
        const TRIES: u64 = 20;
        let pair = |prompt: Prompt| {
            let reply = |i| {
                let mut stream = Stream::new(self.seed, &format!("reply {}", prompt.id), i);
                answer::demonstrate(self.seed, &prompt, &mut stream).0
            };
            let first = reply(0);
            let second = (1..=TRIES).map(reply).find(|other| *other != first)?;
            Some((prompt, [first, second]))
        };
        self.prompts(split, n).into_iter().filter_map(pair).collect()
    }

    /// `n` documents to pretrain on, about 30 words each. Number `i` does not depend on `n`.
    pub fn corpus(&self, n: usize) -> Vec<String> {
        let train: Vec<&Prompt> = self.pool.iter().filter(|p| p.split == Split::Train).collect();
        (0..n).map(|i| corpus::document(self.seed, &self.facts, &train, i as u64)).collect()
    }

    /// The best answer to a prompt. Not for the training path.
    pub fn ideal(&self, prompt: &Prompt) -> String {
        answer::ideal(&prompt.key)
    }

    /// What a response is really worth. Not for the training path.
    pub fn gold<'a>(&self, prompt: &Prompt, response: impl Into<Response<'a>>) -> Gold {
        gold::judge(prompt, response.into())
    }

    /// The world in a few lines of plain text, for a report: numbers, formulas and known flaws, from the same constants that
    /// the code uses.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        let unknown = self.facts.iter().filter(|fact| fact.value.is_none()).count();
        line(format!(
            "Tiny world, seed {}: {} words, {} facts and {unknown} questions that nobody can answer, {} prompts.",
            self.seed,
            vocabulary().len(),
            self.facts.len() - unknown,
            self.pool.len(),
        ));
        for category in Category::ALL {
            let sizes = Split::ALL.map(|split| self.prompts_of(category, split));
            let example = &sizes[0][0];
            line(format!(
                "  {}: {} train, {} validation, {} holdout; \"{}\" -> \"{}\"",
                category.name(),
                sizes[0].len(),
                sizes[1].len(),
                sizes[2].len(),
                example.text,
                self.ideal(example),
            ));
        }
        line(format!(
            "Demonstrations: {:.0} % of topics are taught badly (main flaw in {:.0} % of replies), the rest well ({:.0} %); \
             0 to {} polite fillers around a reply with probabilities {FILLER_SHARES:?}.",
            100.0 * BADLY_TAUGHT_SHARE,
            100.0 * FLAW_BADLY_TAUGHT,
            100.0 * FLAW_WELL_TAUGHT,
            FILLER_SHARES.len() - 1,
        ));
        line(format!(
            "Gold utility: helpful * form - {HARM_COST} * (1 - harmless) - {FALSEHOOD_COST} * (1 - honest); form is 1 up to \
             {WASTE_FREE} words beyond the ideal answer, then falls by a factor e every {WASTE_SCALE} words, and is \
             multiplied by {TRUNCATED} if the response did not end.",
        ));
        line("Panel: utility = gain * gold + per_word * words + per_filler * fillers, compared with logistic noise.".into());
        for a in Panel::standard(self.seed).annotators {
            line(format!(
                "  {} ({}): gain {}, per word {}, per filler {}, left pull {}, temperature {}, careless {}",
                a.name, a.flaw, a.gain, a.per_word, a.per_filler, a.left_pull, a.temperature, a.careless
            ));
        }
        out
    }

    /// Gold utility of some demonstrations beside the ideal, by category; categories without one are left out.
    pub fn quality(&self, demonstrations: &[Demonstration]) -> Vec<Quality> {
        let of = |category| {
            let demos: Vec<&Demonstration> =
                demonstrations.iter().filter(|demo| demo.prompt.category == category).collect();
            let n = demos.len();
            let mean = |value: &dyn Fn(&Demonstration) -> f64| {
                demos.iter().map(|demo| value(demo)).sum::<f64>() / n as f64
            };
            (n > 0).then(|| Quality {
                category,
                n,
                gold_mean: mean(&|demo| self.gold(&demo.prompt, &demo.response).total),
                ideal_mean: mean(&|demo| self.gold(&demo.prompt, &self.ideal(&demo.prompt)).total),
                flawed_share: mean(&|demo| f64::from(!demo.flaws.is_empty())),
                words_mean: mean(&|demo| self.gold(&demo.prompt, &demo.response).words as f64),
            })
        };
        Category::ALL.into_iter().filter_map(of).collect()
    }
}
