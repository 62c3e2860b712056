//! What scored pairs say: accuracy beside what knows nothing but lengths, calibration, the share of what people reach, disagreement.
//!
//! With `Δ` the better response's reward minus the worse one's,
//!
//! ```text
//! accuracy                    1 if Δ > 0, ½ if Δ = 0
//! accuracy_over_longer_wins   that minus the same for the longer response (in tokens), pair by pair; _shorter_ likewise
//! brier, log_loss             (1 - σ(Δ))², -ln σ(Δ)
//! ece_excess                  Σ_bins |Σ_bin (y - p)| / n - its mean if calibrated,   p = σ(|Δ|), y = accuracy
//! temperature                 T = argmin Σ -ln σ(Δ / T)
//! human_agreement             a vote's agreement with the majority of the pair's other votes, ties ½
//! share_of_ceiling            the model's agreement with single votes / human_agreement
//! ```

use std::collections::BTreeMap;

use polity_stats::{Binning, Error, calibration_error_if_calibrated, calibration_terms, temperature};

use super::{Found, Name, credit};

/// Bins of equal number of the calibration error.
const BINS: usize = 10;
/// Simulated outcomes of a calibrated model.
const NULL_DRAWS: usize = 1000;
const SEED: u64 = 42;

/// A pair that a reward model scored.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredPair {
    /// Its prompt: pairs of one prompt are one cluster.
    pub prompt: String,
    /// What accuracy is broken down by.
    pub categories: Vec<String>,
    /// Tokens of the better response and of the worse one.
    pub tokens: [usize; 2],
    /// Their rewards.
    pub reward: [f64; 2],
    /// People's votes for each, where they are known.
    pub votes: Option<[u64; 2]>,
}

impl ScoredPair {
    /// How much better the better one is scored.
    pub fn margin(&self) -> f64 {
        self.reward[0] - self.reward[1]
    }

    /// Tokens that the better response has more.
    fn longer(&self) -> f64 {
        self.tokens[0] as f64 - self.tokens[1] as f64
    }

    /// Its categories, and its groups by length.
    fn groups(&self) -> Vec<&str> {
        let [better, worse] = self.tokens;
        let lengths = [
            (better < worse, "length: chosen shorter"),
            (2 * better < worse, "length: chosen under half"),
            (better == worse, "length: equal"),
            (better > worse, "length: chosen longer"),
            (better > 2 * worse, "length: chosen over double"),
        ];
        let lengths = lengths.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name);
        self.categories.iter().map(String::as_str).chain(lengths).collect()
    }
}

/// Measures of a reward model on pairs.
pub fn pair_measures(pairs: &[ScoredPair]) -> Found {
    let mut found = Found::default();
    let values = |value: fn(&ScoredPair) -> f64| {
        pairs.iter().map(move |pair| (pair.prompt.as_str(), value(pair))).collect::<Vec<_>>()
    };
    let right = |pair: &ScoredPair| credit(pair.margin());
    found.put(Name::share("accuracy"), values(right));
    let mut groups: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    for pair in pairs {
        for group in pair.groups() {
            groups.entry(group).or_default().push((&pair.prompt, right(pair)));
        }
    }
    for (group, values) in groups {
        found.put(Name::share("accuracy").within(group), values);
    }

    let both_ways = Some([-1.0, 1.0]);
    let over = |name| Name { range: both_ways, ..Name::share(name) };
    found
        .put(over("accuracy_over_longer_wins"), values(|pair| credit(pair.margin()) - credit(pair.longer())));
    found.put(
        over("accuracy_over_shorter_wins"),
        values(|pair| credit(pair.margin()) - credit(-pair.longer())),
    );
    found.put(Name::share("longer_wins"), values(|pair| credit(pair.longer())));
    found.put(
        Name::share("prefers_longer"),
        pairs
            .iter()
            .filter(|pair| pair.longer() != 0.0)
            .map(|pair| (pair.prompt.as_str(), credit(pair.margin() * pair.longer()))),
    );

    found.put(Name::share("brier"), values(|pair| sigmoid(-pair.margin()).powi(2)));
    found.put(Name::of("log_loss", "nats"), values(|pair| softplus(-pair.margin())));
    calibration(&mut found, pairs);
    ceiling(&mut found, pairs);
    found
}

fn calibration(found: &mut Found, pairs: &[ScoredPair]) {
    let margins: Vec<f64> = pairs.iter().map(ScoredPair::margin).collect();
    let excess = || -> Result<Vec<f64>, Error> {
        let sure: Vec<f64> = margins.iter().map(|margin| sigmoid(margin.abs())).collect();
        let right: Vec<f64> = margins.iter().map(|&margin| credit(margin)).collect();
        let binning = Binning::EqualMass(BINS);
        let null = calibration_error_if_calibrated(&sure, binning, NULL_DRAWS, SEED)?;
        Ok(calibration_terms(&sure, &right, binning)?.into_iter().map(|term| term - null).collect())
    };
    let warmth = || -> Result<Vec<f64>, Error> {
        let t = temperature(&margins, &vec![1.0; margins.len()])?;
        // With slope b = 1 / T the score is ψ = σ(-b Δ) Δ and the information h = σ(b Δ) σ(-b Δ) Δ²; dT = -T² db.
        let information = |margin: f64| sigmoid(margin / t) * sigmoid(-margin / t) * margin * margin;
        let h = margins.iter().map(|&margin| information(margin)).sum::<f64>() / margins.len() as f64;
        let influence = |margin: f64| t - t * t * sigmoid(-margin / t) * margin / h;
        Ok(margins.iter().map(|&margin| influence(margin)).collect())
    };
    let mut put = |name: Name<'_>, values: Result<Vec<f64>, Error>| match values {
        Ok(values) => {
            found.put(name, pairs.iter().zip(values).map(|(pair, x)| (pair.prompt.as_str(), x)));
        }
        Err(error) => found.miss(name, error.to_string()),
    };
    put(Name::of("ece_excess", "share"), excess());
    put(Name::of("temperature", "ratio"), warmth());
}

/// How near the model comes to how well people predict one another.
fn ceiling(found: &mut Found, pairs: &[ScoredPair]) {
    // Sums over a pair's votes: people's agreement with one another, the model's with them, their number.
    let voted = |pair: &ScoredPair| {
        let [with, against] = pair.votes?.map(|votes| votes as f64);
        let rest = |own: f64, other: f64| if own > 0.0 { own * credit(own - 1.0 - other) } else { 0.0 };
        let model = credit(pair.margin());
        let people = rest(with, against) + rest(against, with);
        (with + against >= 2.0).then_some((people, with * model + against * (1.0 - model), with + against))
    };
    let voted: Vec<(&str, (f64, f64, f64))> =
        pairs.iter().filter_map(|pair| Some((pair.prompt.as_str(), voted(pair)?))).collect();
    if voted.is_empty() {
        return;
    }
    let total = |of: fn(&(f64, f64, f64)) -> f64| voted.iter().map(|(_, sums)| of(sums)).sum::<f64>();
    let (people, model, votes) = (total(|sums| sums.0), total(|sums| sums.1), total(|sums| sums.2));
    found.put_sums(
        Name::share("human_agreement"),
        voted.iter().map(|&(id, (people, _, votes))| (id, people, votes as u64)),
    );
    if people == 0.0 {
        return found
            .miss(Name::of("share_of_ceiling", "ratio"), "people never agree with one another".into());
    }
    let ratio = model / people;
    let per_vote = people / votes;
    found.put_sums(
        Name::of("share_of_ceiling", "ratio"),
        voted.iter().map(|&(id, (people, model, votes))| {
            (id, votes * ratio + (model - ratio * people) / per_vote, votes as u64)
        }),
    );
}

/// Measures of how far other reward models agree with this one on the same pairs; `margins` are theirs, one list a model.
///
/// ```text
/// ensemble_agreement   share of the others that prefer the same response
/// ensemble_sd          standard deviation over all of margins, each model's in units of its own root mean square
/// ```
///
/// # Panics
///
/// If a model has another number of margins.
pub fn ensemble_measures(pairs: &[ScoredPair], margins: &[Vec<f64>]) -> Found {
    let mut found = Found::default();
    if margins.is_empty() {
        return found;
    }
    let own: Vec<f64> = pairs.iter().map(ScoredPair::margin).collect();
    assert!(margins.iter().all(|other| other.len() == own.len()), "ensemble: one margin for each pair");
    let with_prompt = |values: Vec<f64>| {
        pairs.iter().zip(values).map(|(pair, x)| (pair.prompt.as_str(), x)).collect::<Vec<_>>()
    };
    let agree = |i: usize| margins.iter().map(|other| credit(own[i] * other[i])).sum::<f64>();
    let agreement = (0..own.len()).map(|i| agree(i) / margins.len() as f64).collect();
    found.put(Name::share("ensemble_agreement"), with_prompt(agreement));

    let scaled: Vec<Vec<f64>> =
        std::iter::once(&own).chain(margins).map(|margins| in_own_units(margins)).collect();
    let sd = |i: usize| {
        let mean = scaled.iter().map(|margins| margins[i]).sum::<f64>() / scaled.len() as f64;
        let squares = scaled.iter().map(|margins| (margins[i] - mean).powi(2)).sum::<f64>();
        (squares / (scaled.len() - 1) as f64).sqrt()
    };
    found.put(Name::of("ensemble_sd", "rms margin"), with_prompt((0..own.len()).map(sd).collect()));
    found
}

fn in_own_units(margins: &[f64]) -> Vec<f64> {
    let rms = (margins.iter().map(|x| x * x).sum::<f64>() / margins.len().max(1) as f64).sqrt();
    margins.iter().map(|x| if rms > 0.0 { x / rms } else { 0.0 }).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + eˣ)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
