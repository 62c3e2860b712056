//! The demo's page, `DIR/report.html`: what the world is, what each stage did, and which model is better, with intervals.
//!
//! Made of the parts of the runs' own reports (`train::report`), to which it links. One file, nothing fetched.
//!
//! Not here: measuring (`judge`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use polity_chart::{Bar, BarChart, BarGroup, Form, LineChart, Mark, Series, escape, short};
use polity_eval::gate::CriterionVerdict;
use polity_stats::wilson;
use polity_store::{DatasetTexts, JudgementFilter, Kind};
use polity_train::report::{self, Measure, Page, RunData, final_measures, grid, table};
use polity_world::{Category, Panel, Prompt, Split, World, vocabulary};

use super::judge::Judged;
use super::{CONFIDENCE, Ending};
use crate::error::CommandResult;
use crate::pipeline::{Ended, Step};
use crate::project::Project;
use crate::project_args::InProject;
use crate::ui::duration;

/// A part of the demo that is over.
#[derive(Clone, Debug)]
pub struct StageDone {
    /// Its name.
    pub name: String,
    /// What it did, in a sentence.
    pub what: String,
    /// How long it took.
    pub time_s: f64,
    /// Its run, if it left one: from the demo's directory.
    pub run: Option<String>,
}

/// How one annotator voted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    votes: usize,
    ties: usize,
    left: usize,
    /// Votes for a side where most of the others also took a side: with them, and in all.
    with_others: [usize; 2],
    /// Votes for a side where one response is truly better: for it, and in all.
    with_truth: [usize; 2],
}

/// How the simulated annotators voted on what the dataset is made of.
pub fn tallies(dir: &Path, world: &World, ended: &Ended) -> CommandResult<Vec<Tally>> {
    let project = Project::open(&InProject { project: Some(dir.to_owned()) })?;
    let dataset = ended.done[&Step::Freeze].said["dataset"].as_str().unwrap_or_default().to_owned();
    let prompts: HashMap<&str, &Prompt> =
        world.all_prompts().iter().map(|prompt| (prompt.text.as_str(), prompt)).collect();
    let rows = project.wait(project.store().dataset_rows(&dataset, 0, i64::MAX))?;
    let truth = |row: &DatasetTexts| {
        let prompt = prompts.get(row.prompt.words().as_str())?;
        let [a, b] = [&row.a, &row.b].map(|text| world.gold(prompt, &text.words()).total);
        Some((row.row.comparison_id.clone(), a - b))
    };
    let truth: HashMap<String, f64> = rows.iter().filter_map(truth).collect();
    let filter = JudgementFilter { kind: Some(Kind::Work), ..JudgementFilter::default() };
    let mut votes: HashMap<String, Vec<Cast>> = HashMap::new();
    let names: Vec<String> = Panel::standard(world.seed())
        .annotators
        .iter()
        .map(|annotator| format!("simulated:{}", annotator.name))
        .collect();
    for judgement in project.wait(project.store().judgements(filter))? {
        let who = names.iter().position(|name| *name == judgement.annotator_id);
        if let (Some(who), Some(grade)) = (who, judgement.overall.grade()) {
            let a_was_left = judgement.a_was_left.unwrap_or(true);
            votes.entry(judgement.comparison_id).or_default().push(Cast {
                who,
                side: grade.signum(),
                a_was_left,
            });
        }
    }
    let mut tallies = vec![Tally::default(); names.len()];
    for (comparison, truth) in &truth {
        tally(&mut tallies, votes.get(comparison).map_or(&[], Vec::as_slice), *truth);
    }
    Ok(tallies)
}

/// One vote on a comparison of `a` and `b`.
#[derive(Clone, Copy, Debug)]
struct Cast {
    who: usize,
    /// 1 for `a`, -1 for `b`, 0 for neither.
    side: i8,
    a_was_left: bool,
}

/// Adds one comparison to the tallies of the panel. `truth` is the gold utility of `a` less that of `b`.
fn tally(tallies: &mut [Tally], votes: &[Cast], truth: f64) {
    let sum: i8 = votes.iter().map(|vote| vote.side).sum();
    for &Cast { who, side, a_was_left } in votes {
        let tally = &mut tallies[who];
        tally.votes += 1;
        if side == 0 {
            tally.ties += 1;
            continue;
        }
        tally.left += usize::from((side > 0) == a_was_left);
        let others = (sum - side).signum();
        let agree = |with: &mut [usize; 2], holds: bool| {
            with[0] += usize::from(holds);
            with[1] += 1;
        };
        if others != 0 {
            agree(&mut tally.with_others, others == side);
        }
        if truth != 0.0 {
            agree(&mut tally.with_truth, (truth > 0.0) == (side > 0));
        }
    }
}

/// Everything the page shows.
pub struct DemoReport<'a> {
    /// The demo's directory.
    pub dir: &'a Path,
    /// The world.
    pub world: &'a World,
    /// Whether PPO ran without its leash.
    pub over_optimise: bool,
    /// What was done, in order.
    pub stages: &'a [StageDone],
    /// How the panel voted, in its order.
    pub panel: Vec<Tally>,
    /// The held-out prompts.
    pub prompts: &'a [Prompt],
    /// The models, the supervised one first.
    pub judged: &'a [Judged],
    /// The reward model's run.
    pub reward: &'a Path,
    /// The pairs that it was evaluated on.
    pub pairs: Option<PathBuf>,
    /// The policy's run.
    pub ppo: &'a Path,
    /// What came of the gate.
    pub ending: &'a Ending,
}

impl DemoReport<'_> {
    /// The page.
    pub fn html(&self) -> CommandResult<String> {
        let ppo = RunData::read(self.ppo)?;
        let reward = RunData::read(self.reward)?;
        let mut page = Page::new("Polity: the whole loop on a tiny world", &self.subtitle(&ppo));
        page.section("World", &self.world());
        page.section("Result", &self.result());
        if self.over_optimise {
            page.section("Over-optimisation", &over_optimisation(&ppo));
        }
        page.section("Gate", &self.gate());
        page.section("By category", &self.by_category());
        page.section("Stages", &self.stages());
        page.section("Panel", &self.panel());
        page.section("Reward model", &self.reward_model(&reward));
        page.section("PPO", &self.ppo(&ppo));
        page.section("Responses", &self.responses());
        Ok(page.finish())
    }

    /// A run as the page links to it.
    fn link(&self, run: &Path) -> String {
        run.strip_prefix(self.dir).unwrap_or(run).to_string_lossy().into_owned()
    }

    fn subtitle(&self, ppo: &RunData) -> String {
        let time_s: f64 = self.stages.iter().map(|stage| stage.time_s).sum();
        let machine = &ppo.manifest.machine;
        format!(
            "seed {}, {} on {}, {} threads",
            self.world.seed(),
            duration(time_s),
            machine.cpu,
            machine.threads
        )
    }

    fn world(&self) -> String {
        format!(
            "<p>A generated world of {} words and {} prompts, in which the worth of any answer is known by rule: its gold \
             utility, 1 for an ideal answer, 0 for noise, below 0 for falsehood and harm.</p>\
             <p>The trainers never see it. They see demonstrations of mixed quality and the votes of {} annotators with known \
             flaws; the models are judged by it on {} prompts of which no training saw any.</p>",
            vocabulary().len(),
            Split::ALL.map(|split| self.world.prompts(split, usize::MAX).len()).iter().sum::<usize>(),
            Panel::standard(self.world.seed()).annotators.len(),
            self.prompts.len(),
        )
    }

    fn result(&self) -> String {
        /// Name, heading, factor, digits.
        type Column = (&'static str, &'static str, f64, usize);
        const COLUMNS: [Column; 7] = [
            ("gold_win_rate_vs_sft", "wins over SFT, %", 100.0, 0),
            ("gold_utility", "gold utility", 1.0, 2),
            ("proxy_reward", "proxy reward", 1.0, 2),
            ("kl_nats_per_sequence", "KL, nats", 1.0, 1),
            ("refusal_rate", "refuses harm, %", 100.0, 0),
            ("over_refusal_rate", "refuses the harmless, %", 100.0, 0),
            ("response_tokens", "tokens", 1.0, 1),
        ];
        let mut head = vec!["model".to_owned()];
        head.extend(COLUMNS.iter().map(|(_, label, ..)| format!("#{label}")));
        let row = |judged: &Judged| {
            let cell = |&(name, _, factor, digits): &Column| {
                let found = judged.measure(name, "all");
                found.map_or("–".into(), |measure| with_interval(measure, factor, digits))
            };
            let mut cells = vec![name_of(judged.name).to_owned()];
            cells.extend(COLUMNS.iter().map(cell));
            cells
        };
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = self.judged.iter().map(row).collect();
        format!(
            "{}<p class=\"when\">In brackets: 95 % intervals. Wins are of the prompts on which the two responses differ in gold \
             utility; KL is per response, from the SFT model. Alarms: {}.</p>",
            table(&head, &rows),
            self.alarms()
        )
    }

    fn gate(&self) -> String {
        let verdict = &self.ending.verdict;
        let row = |said: &CriterionVerdict| {
            let decides = if said.blocking { "" } else { " (decides nothing)" };
            vec![
                format!("{}{decides}", escape(&said.id)),
                said.verdict.name().to_owned(),
                escape(&said.reason),
            ]
        };
        let rows: Vec<Vec<String>> = verdict.criteria.iter().map(row).collect();
        let end = match &self.ending.release {
            Some(release) => format!("It is released as {}.", escape(release)),
            None => "It is not released.".to_owned(),
        };
        format!(
            "<p>{} under policy {}: <strong>{}</strong>. {end}</p>{}<p class=\"when\">The panel voted on its responses beside SFT's; \
             nothing here is the gold utility. <code>polity lineage</code> and <code>polity ledger log</code> in this directory show what it rests on.</p>",
            name_of(self.ending.model),
            escape(&verdict.policy),
            verdict.verdict.name(),
            table(&["criterion", "verdict", "why"], &rows)
        )
    }

    fn alarms(&self) -> String {
        let raised: Vec<String> = self
            .judged
            .iter()
            .filter(|judged| !judged.alarms.is_empty())
            .map(|judged| escape(&format!("{} raised {}", name_of(judged.name), judged.alarms.join(", "))))
            .collect();
        if raised.is_empty() { "none".into() } else { raised.join("; ") }
    }

    fn by_category(&self) -> String {
        let bars = |title: &str, unit: &str, reference, rows: &[(&str, &str, &str)]| {
            let groups = self.judged.iter().enumerate().map(|(colour, judged)| BarGroup {
                name: name_of(judged.name).into(),
                bars: rows
                    .iter()
                    .map(|(name, category, _)| judged.measure(name, category).map(bar))
                    .collect(),
                colour,
            });
            BarChart {
                title: title.into(),
                unit: unit.into(),
                categories: rows.iter().map(|(_, _, label)| label.replace('_', " ")).collect(),
                groups: groups.filter(|group| group.bars.iter().any(Option::is_some)).collect(),
                reference,
                form: Form::Bars,
            }
            .to_html()
        };
        let chart = |name: &str, title: &str, unit: &str, reference| {
            let rows: Vec<_> = categories().map(|category| (name, category, category)).collect();
            bars(title, unit, reference, &rows)
        };
        let refusals =
            [("refusal_rate", "all", "requests for harm"), ("over_refusal_rate", "all", "harmless requests")];
        grid(&[
            chart("gold_utility", "Gold utility", "utility", None),
            chart("gold_win_rate_vs_sft", "Wins over SFT", "share of prompts that differ", Some(0.5)),
            chart("proxy_reward", "Reward model's score", "reward", None),
            chart("kl_nats_per_sequence", "KL from SFT", "nats per response", None),
            chart("response_tokens", "Length", "tokens per response", None),
            bars("Refusals", "share of prompts", None, &refusals),
        ])
    }

    fn stages(&self) -> String {
        let row = |stage: &StageDone| {
            let link = |run: &String| format!("<a href=\"{0}/report.html\">{0}</a>", escape(run));
            let report = stage.run.as_ref().map(link).unwrap_or_default();
            vec![escape(&stage.name), escape(&stage.what), duration(stage.time_s), report]
        };
        table(&["stage", "what it did", "#time", "report"], &self.stages.iter().map(row).collect::<Vec<_>>())
    }

    fn panel(&self) -> String {
        let share = |[with, of]: [usize; 2]| {
            wilson(with, of, CONFIDENCE).map_or("–".into(), |x| {
                format!("{:.0} [{:.0}, {:.0}]", 100.0 * x.estimate, 100.0 * x.low, 100.0 * x.high)
            })
        };
        let annotators = Panel::standard(self.world.seed()).annotators;
        let row = |(annotator, tally): (&polity_world::Annotator, &Tally)| {
            let decided = tally.votes - tally.ties;
            vec![
                escape(&annotator.name),
                escape(&annotator.flaw.replace('_', " ")),
                tally.votes.to_string(),
                share([tally.ties, tally.votes]),
                share([tally.left, decided]),
                share(tally.with_others),
                share(tally.with_truth),
            ]
        };
        let rows: Vec<Vec<String>> = annotators.iter().zip(&self.panel).map(row).collect();
        let head = [
            "annotator",
            "flaw",
            "#votes",
            "#ties, %",
            "#for the left, %",
            "#with the others, %",
            "#with the truth, %",
        ];
        format!(
            "{}<p class=\"when\">Of votes for a side: with the majority of the others, and for the response of higher gold \
             utility. In brackets: 95 % intervals that take votes as independent.</p>",
            table(&head, &rows)
        )
    }

    fn reward_model(&self, reward: &RunData) -> String {
        let lines = |file: &PathBuf| std::fs::read_to_string(file).map_or(0, |text| text.lines().count());
        let pairs = self.pairs.as_ref().map_or(0, lines);
        format!(
            "{}<p class=\"when\">On held-out pairs, against the panel's majority. Longer wins is what choosing the longer \
             response would score.</p>",
            report::measures(&final_measures(reward, pairs))
        )
    }

    fn ppo(&self, ppo: &RunData) -> String {
        // The first of them are what is optimised, what matters, and the leash.
        const CURVES: usize = 6;
        let curves: Vec<String> = report::main_charts(ppo).into_iter().take(CURVES).collect();
        format!(
            "{}<p class=\"when\">The gold utility (the score that matters) is of responses to validation prompts; PPO sees only \
             the reward model's score.</p><p><a href=\"{}/report.html\">All curves, and responses over time</a></p>",
            grid(&curves),
            escape(&self.link(self.ppo))
        )
    }

    /// The first held-out prompts of each category: not chosen by what was said.
    fn responses(&self) -> String {
        const EACH: usize = 2;
        let mut out = String::new();
        for category in Category::ALL {
            let of = self.prompts.iter().enumerate().filter(|(_, prompt)| prompt.category == category);
            for (i, prompt) in of.take(EACH) {
                let _ = write!(
                    out,
                    "<div class=\"sample\"><p class=\"when\">{}</p><pre class=\"prompt\">{}</pre><div class=\"columns\">",
                    category.name().replace('_', " "),
                    escape(&prompt.text)
                );
                for judged in self.judged {
                    let (gold, text) = (judged.gold[i].total, escape(&judged.texts[i]));
                    let name = name_of(judged.name);
                    let _ = write!(
                        out,
                        "<div><p class=\"when\">{name}, gold {}</p><pre>{text}</pre></div>",
                        short(gold)
                    );
                }
                out.push_str("</div></div>");
            }
        }
        format!(
            "<p class=\"when\">The first held-out prompts of each category, one response each at temperature 1.</p>{out}"
        )
    }
}

/// As people write it.
fn name_of(model: &str) -> &str {
    match model {
        "sft" => "SFT",
        "ppo" => "PPO",
        "dpo" => "DPO",
        other => other,
    }
}

fn categories() -> impl Iterator<Item = &'static str> {
    std::iter::once("all").chain(Category::ALL.map(Category::name))
}

fn bar(measure: &Measure) -> Bar {
    Bar { value: measure.estimate, interval: measure.low.zip(measure.high) }
}

fn with_interval(measure: &Measure, factor: f64, digits: usize) -> String {
    let show = |x: f64| format!("{:.digits$}", x * factor);
    match measure.low.zip(measure.high) {
        Some((low, high)) => format!("{} [{}, {}]", show(measure.estimate), show(low), show(high)),
        None => show(measure.estimate),
    }
}

fn over_optimisation(ppo: &RunData) -> String {
    format!(
        "<p>Without the KL leash the policy goes where the reward model errs: the score goes on rising while the gold utility \
         falls. Nothing in the world or the trainer asks for it. Dashed: an alarm was raised.</p>{}{}",
        grid(&[proxy_and_gold(ppo)]),
        report::alarms(&ppo.alarms)
    )
}

/// What is optimised and what matters, against the distance from the reference, in the order of training. Score and KL are
/// means over the rollouts since the last evaluation: one rollout's are noisy.
fn proxy_and_gold(ppo: &RunData) -> String {
    let (mut proxy, mut gold, mut marks) = (Vec::new(), Vec::new(), Vec::new());
    let (mut since, mut evaluated) = (Vec::new(), 0);
    for step in &ppo.steps {
        let value = |name: &str| step.values.get(name).copied();
        since.extend(value("objective/kl").zip(value("objective/scores")));
        let Some(worth) = value("samples/gold") else { continue };
        let mean = |of: fn(&(f64, f64)) -> f64| since.iter().map(of).sum::<f64>() / since.len() as f64;
        let (kl, score) = (mean(|x| x.0), mean(|x| x.1));
        proxy.push((kl, score));
        gold.push((kl, worth));
        let raised = ppo.alarms.iter().filter(|alarm| alarm.raised);
        let new = raised.filter(|alarm| (evaluated + 1..=step.step).contains(&alarm.step));
        marks.extend(new.map(|alarm| Mark {
            x: kl,
            name: format!("{}, step {}", alarm.alarm, alarm.step),
            label: format!("step {}: {}: {}", alarm.step, alarm.alarm, alarm.message),
        }));
        since.clear();
        evaluated = step.step;
    }
    let series = |name: &str, points: Vec<(f64, f64)>| Series {
        name: name.into(),
        points: points.into_iter().collect(),
        dots: true,
    };
    LineChart {
        title: "Score and gold utility against KL".into(),
        unit: "reward, utility".into(),
        x_label: "KL from SFT, nats per response".into(),
        series: vec![series("score of the reward model", proxy), series("gold utility", gold)],
        marks,
        from_zero: false,
    }
    .to_html()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_by_hand() {
        let vote = |who, side| Cast { who, side, a_was_left: true };
        let mut tallies = vec![Tally::default(); 3];
        // Two for the left, one for the right, and the left is better.
        tally(&mut tallies, &[vote(0, 1), vote(1, 1), vote(2, -1)], 0.5);
        // One each and a tie; nobody knows which is better; the first two saw the responses the other way round.
        let swapped = |who, side| Cast { a_was_left: false, ..vote(who, side) };
        tally(&mut tallies, &[swapped(0, 1), swapped(1, 0), vote(2, -1)], 0.0);
        // The first one's others: in the first comparison they cancel out, in the second they are for the right.
        let first = Tally { votes: 2, ties: 0, left: 1, with_others: [0, 1], with_truth: [1, 1] };
        let second = Tally { votes: 2, ties: 1, left: 1, with_others: [0, 0], with_truth: [1, 1] };
        let third = Tally { votes: 2, ties: 0, left: 0, with_others: [0, 2], with_truth: [0, 1] };
        assert_eq!(tallies, [first, second, third]);
    }

    #[test]
    fn intervals_in_a_cell() {
        let measure = |low, high| Measure {
            name: "x".into(),
            category: "all".into(),
            unit: "share".into(),
            estimate: 0.714,
            low,
            high,
            n: None,
        };
        assert_eq!(with_interval(&measure(Some(0.65), Some(0.775)), 100.0, 0), "71 [65, 78]");
        assert_eq!(with_interval(&measure(None, None), 1.0, 2), "0.71");
    }
}
