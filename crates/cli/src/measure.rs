//! `polity logprobs` and `polity score`: completions in, numbers out, as JSONL in the order of the input.
//!
//! Neighbouring rows with the same prompt are computed as one prefix tree, the prompt once. A row's numbers do not
//! depend on its batch.
//!
//! Not here: rows to ids (`input`), the heads (`compute`).

use std::ops::Range;

use polity_compute::{Batch, Recompute, Tape};
use polity_lm::engine::Flow;
use serde::Serialize;

use crate::args::{Global, MeasureArgs};
use crate::error::{CommandError, CommandResult};
use crate::host::Interrupts;
use crate::input::{self, CompletionIds};
use crate::model::Loaded;
use crate::output::Sink;
use crate::settings::{Read, Settings, Uses};
use crate::ui::{Ui, Work};

/// Tokens computed together: enough to fill the processor, few enough to see rows come out.
const BATCH_TOKENS: usize = 4096;

#[derive(Serialize)]
struct LogprobsRow<'r> {
    index: usize,
    ids: &'r [u32],
    logprobs: &'r [f32],
    entropy: &'r [f32],
}

#[derive(Serialize)]
struct ScoreRow {
    index: usize,
    score: f32,
}

/// Runs `polity logprobs`.
pub fn logprobs(args: &MeasureArgs, global: &Global, ui: &Ui) -> CommandResult {
    let rows = input::open(&args.input, ui)?;
    let mut loaded = Loaded::language_model(&args.model, "give log-probs", global)?;
    let Read { settings, .. } = Settings::read(Uses::Logprobs, &args.model, &loaded.model, &args.sets)?;
    loaded.multiply_in(settings.precision);
    let rows = input::completions(rows, &loaded, ui)?;
    let temperature = settings.sampler.temperature;
    Sink::new(args.output.as_deref()).write(|out| {
        let stopped = in_batches("logprobs", &rows, ui, |rows, tape| {
            each_logprobs(&loaded, rows, temperature, tape, |row, logprobs, entropy| {
                out.row(&LogprobsRow { index: row.index, ids: row.completion(), logprobs, entropy })
            })?;
            Ok(if out.closed() { Flow::Stop } else { Flow::Continue })
        })?;
        stopped.map_or(Ok(()), |done| Err(out.stopped(done)))
    })
}

/// Runs `polity score`.
pub fn score(args: &MeasureArgs, global: &Global, ui: &Ui) -> CommandResult {
    let rows = input::open(&args.input, ui)?;
    let mut loaded = Loaded::reward_model(&args.model, global)?;
    let Read { settings, .. } = Settings::read(Uses::Score, &args.model, &loaded.model, &args.sets)?;
    loaded.multiply_in(settings.precision);
    let rows = input::completions(rows, &loaded, ui)?;
    Sink::new(args.output.as_deref()).write(|out| {
        let stopped = in_batches("score", &rows, ui, |rows, tape| {
            for (row, score) in rows.iter().zip(scores_of(&loaded, rows, tape)) {
                out.row(&ScoreRow { index: row.index, score })?;
            }
            Ok(if out.closed() { Flow::Stop } else { Flow::Continue })
        })?;
        stopped.map_or(Ok(()), |done| Err(out.stopped(done)))
    })
}

/// Log-prob and entropy of each completion, summed over its tokens, nats.
pub fn likelihoods(
    loaded: &Loaded,
    rows: &[CompletionIds],
    temperature: f32,
    ui: &Ui,
) -> CommandResult<Vec<(f64, f64)>> {
    let sum = |values: &[f32]| values.iter().map(|&x| f64::from(x)).sum::<f64>();
    let mut sums = Vec::with_capacity(rows.len());
    let stopped = in_batches("log-probs", rows, ui, |rows, tape| {
        each_logprobs(loaded, rows, temperature, tape, |_, logprobs, entropy| {
            sums.push((sum(logprobs), sum(entropy)));
            Ok(())
        })?;
        Ok(Flow::Continue)
    })?;
    stopped.map_or(Ok(sums), |_| Err(CommandError::interrupted("stopped; nothing was written")))
}

/// A reward model's score of each completion.
pub fn scores(loaded: &Loaded, rows: &[CompletionIds], ui: &Ui) -> CommandResult<Vec<f32>> {
    let mut scores = Vec::with_capacity(rows.len());
    let stopped = in_batches("scores", rows, ui, |rows, tape| {
        scores.extend(scores_of(loaded, rows, tape));
        Ok(Flow::Continue)
    })?;
    stopped.map_or(Ok(scores), |_| Err(CommandError::interrupted("stopped; nothing was written")))
}

/// Calls `compute` on one batch of rows after the other, until it has enough. Returns how many rows were done if someone pressed Ctrl-C.
fn in_batches(
    label: &str,
    rows: &[CompletionIds],
    ui: &Ui,
    mut compute: impl FnMut(&[CompletionIds], &mut Tape) -> CommandResult<Flow>,
) -> CommandResult<Option<usize>> {
    let mut tape = Tape::default();
    let interrupts = Interrupts::install(ui, "")?;
    let started = std::time::Instant::now();
    for part in batches(rows) {
        let (part_end, done) = (part.end, part.end as u64);
        if let Flow::Stop = compute(&rows[part], &mut tape)? {
            break;
        }
        if interrupts.requested() {
            return Ok(Some(part_end));
        }
        let rate = done as f64 / started.elapsed().as_secs_f64();
        let total = rows.len() as u64;
        ui.progress(&Work {
            label,
            done,
            total,
            unit: "row",
            rate_per_s: Some(rate),
            remaining_s: Some((total - done) as f64 / rate),
        });
    }
    ui.end_progress();
    Ok(None)
}

/// Consecutive rows of at most [`BATCH_TOKENS`] together, but at least one.
fn batches(rows: &[CompletionIds]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (i, row) in rows.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if tokens + row.ids.len() <= BATCH_TOKENS => {
                part.end = i + 1;
                tokens += row.ids.len();
            }
            _ => {
                parts.push(i..i + 1);
                tokens = row.ids.len();
            }
        }
    }
    parts
}

/// The completions' segments, each a child of its prompt's; neighbours with the same prompt share it.
fn tree(rows: &[CompletionIds]) -> (Batch, Vec<usize>) {
    let mut batch = Batch::new();
    let mut segments = Vec::with_capacity(rows.len());
    let mut last: Option<(&[u32], usize)> = None;
    for row in rows {
        let prompt = match last {
            Some((ids, segment)) if ids == row.prompt() => segment,
            _ => batch.push(row.prompt(), None),
        };
        last = Some((row.prompt(), prompt));
        segments.push(batch.push(row.completion(), Some(prompt)));
    }
    (batch, segments)
}

/// Hands each row with its completion's log-probs and entropies to `each`.
fn each_logprobs(
    loaded: &Loaded,
    rows: &[CompletionIds],
    temperature: f32,
    tape: &mut Tape,
    mut each: impl FnMut(&CompletionIds, &[f32], &[f32]) -> CommandResult,
) -> CommandResult {
    let Loaded { model, decoder, cpu, .. } = loaded;
    let (batch, segments) = tree(rows);
    decoder.forward(cpu, &model.params, &batch, Recompute::Layer, tape);
    let predictions: Vec<_> = segments.iter().flat_map(|&segment| batch.predict(segment, 0)).collect();
    let numbers = decoder.logprobs(cpu, &model.params, tape, &predictions, temperature);
    let mut start = 0;
    for row in rows {
        let end = start + row.completion().len();
        each(row, &numbers.logprob_m[start..end], &numbers.entropy_m[start..end])?;
        start = end;
    }
    Ok(())
}

fn scores_of(loaded: &Loaded, rows: &[CompletionIds], tape: &mut Tape) -> Vec<f32> {
    let Loaded { model, decoder, cpu, .. } = loaded;
    let (batch, segments) = tree(rows);
    decoder.forward(cpu, &model.params, &batch, Recompute::Layer, tape);
    let last_rows: Vec<usize> =
        segments.iter().map(|&segment| batch.last_row(segment).expect("no completion is empty")).collect();
    decoder.scalars(&model.params, tape, &last_rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &[u32], completion: &[u32]) -> CompletionIds {
        CompletionIds { index: 0, ids: [prompt, completion].concat(), first: prompt.len() }
    }

    #[test]
    fn neighbours_share_their_prompt() {
        let rows = [row(&[1, 2], &[3]), row(&[1, 2], &[4, 5]), row(&[1], &[2, 3]), row(&[1, 2], &[6])];
        let (batch, segments) = tree(&rows);
        // 2 + 1 + 2 for the first two, then each on its own.
        assert_eq!(batch.tokens(), 5 + 3 + 3);
        assert_eq!(batch.ids[batch.segments[segments[1]].rows()], [4, 5]);
        assert_eq!(batch.segments[segments[0]].parent, batch.segments[segments[1]].parent);
        assert_ne!(batch.segments[segments[0]].parent, batch.segments[segments[3]].parent);
    }

    #[test]
    fn batches_keep_order_and_limit() {
        let long = vec![1; BATCH_TOKENS];
        let rows = [row(&[1], &[2]), row(&[1], &[3]), row(&[1], &long), row(&[1], &[2])];
        assert_eq!(batches(&rows), [0..2, 2..3, 3..4]);
    }
}
