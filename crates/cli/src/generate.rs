//! `polity generate`: prompts in, responses out, as JSONL in the order of the input.
//!
//! Prompts go to the engine in waves of a few hundred responses, so that rows come out while later ones are still to be
//! computed. A response does not depend on its wave.
//!
//! `ids` and `logprobs` have one entry a token, a stop token included. The log-probs are the policy's at the sampler's
//! temperature (at 1 for greedy decoding), before top-k and the like. `text` leaves special tokens out and ends before a
//! stop text.
//!
//! Not here: sampling (`lm`'s engine), rows to ids (`input`).

use std::time::{Duration, Instant};

use polity_compute::Tape;
use polity_lm::engine::{Engine, Flow, Limits, Request, Response, TokenEvent};
use serde::Serialize;

use crate::args::{GenerateArgs, Global};
use crate::error::CommandResult;
use crate::host::Interrupts;
use crate::input::{self, PromptIds};
use crate::model::Loaded;
use crate::output::{RowWriter, Sink};
use crate::settings::{Read, Settings, Uses};
use crate::ui::{Ui, Work, duration, plural, short};

/// Responses in one wave, as a multiple of those that are decoded together: the end of a wave, where fewer and fewer
/// are left, is a small part of it.
const WAVE_FACTOR: usize = 4;

/// Time between two updates of the progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A row of the output.
#[derive(Serialize)]
struct Row<'r> {
    index: usize,
    sample: usize,
    text: Option<String>,
    ids: &'r [u32],
    logprobs: &'r [f32],
    finish_reason: &'static str,
}

/// Runs the verb.
pub fn run(args: &GenerateArgs, global: &Global, ui: &Ui) -> CommandResult {
    let rows = input::open(&args.input, ui)?;
    let mut loaded = Loaded::language_model(&args.model, "generate text", global)?;
    let Read { settings, warnings } = Settings::read(Uses::Generate, &args.model, &loaded.model, &args.sets)?;
    warnings.iter().for_each(|warning| ui.warn(warning));
    loaded.multiply_in(settings.precision);
    if !settings.sampler.stop_strings.is_empty() {
        loaded.model.tokenizer()?;
    }
    let prompts = input::prompts(rows, &loaded, ui)?;
    warn_if_cut(&prompts, &settings, &loaded, ui);
    let mut meter = Meter::new(ui, (prompts.len() * settings.samples) as u64);
    Sink::new(args.output.as_deref()).write(|out| generate(&loaded, &settings, &prompts, out, &mut meter))?;
    meter.finish();
    Ok(())
}

/// Says how many responses the model has too few positions for.
pub fn warn_if_cut(prompts: &[PromptIds], settings: &Settings, loaded: &Loaded, ui: &Ui) {
    let room = |prompt: &PromptIds| loaded.positions_max() - prompt.ids.len();
    let cut = prompts.iter().filter(|prompt| room(prompt) < settings.sampler.max_new_tokens).count();
    if cut > 0 {
        ui.note(&format!(
            "{cut} {} may end before max_new_tokens = {}: the model has {} positions",
            plural("response", cut as u64),
            settings.sampler.max_new_tokens,
            loaded.positions_max()
        ));
    }
}

fn generate(
    loaded: &Loaded,
    settings: &Settings,
    prompts: &[PromptIds],
    out: &mut RowWriter<'_>,
    meter: &mut Meter<'_>,
) -> CommandResult {
    let mut written = 0;
    let done = each_response(loaded, settings, prompts, meter, &mut |index, response| {
        out.row(&row(loaded, settings, index, response)?)?;
        written += 1;
        Ok(if out.closed() { Flow::Stop } else { Flow::Continue })
    })?;
    match done {
        Done::Interrupted => Err(out.stopped(written)),
        Done::Finished => Ok(()),
    }
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// All responses are there, or `each` had enough.
    Finished,
    /// Someone pressed Ctrl-C.
    Interrupted,
}

/// Answers all prompts and hands each response, with its prompt's index, to `each`, in the order of the prompts.
pub fn each_response(
    loaded: &Loaded,
    settings: &Settings,
    prompts: &[PromptIds],
    meter: &mut Meter<'_>,
    each: &mut dyn FnMut(usize, &Response) -> CommandResult<Flow>,
) -> CommandResult<Done> {
    let interrupts = Interrupts::install(meter.ui, "")?;
    let Loaded { model, decoder, cpu, .. } = loaded;
    let limits = Limits::usual();
    let mut tape = Tape::default();
    let mut engine = Engine::new(cpu, decoder, &model.params, limits, &mut tape);
    let decode = |ids: &[u32]| text_of(loaded, ids).unwrap_or_default();

    let rows_per_wave = (WAVE_FACTOR * limits.sequences_max).div_ceil(settings.samples);
    for wave in prompts.chunks(rows_per_wave) {
        let requests: Vec<Request> = wave
            .iter()
            .map(|prompt| Request {
                ids: prompt.ids.clone(),
                samples: settings.samples,
                prompt_id: prompt.index as u64,
            })
            .collect();
        let responses = engine.generate(
            &requests,
            &settings.sampler,
            settings.seed,
            &decode,
            &mut |event: TokenEvent| {
                meter.token(&event);
                if interrupts.requested() { Flow::Stop } else { Flow::Continue }
            },
        );
        if interrupts.requested() {
            return Ok(Done::Interrupted);
        }
        for response in &responses {
            if let Flow::Stop = each(wave[response.request].index, response)? {
                return Ok(Done::Finished);
            }
        }
    }
    Ok(Done::Finished)
}

fn row<'r>(
    loaded: &Loaded,
    settings: &Settings,
    index: usize,
    response: &'r Response,
) -> CommandResult<Row<'r>> {
    let text = match &loaded.model.tokenizer {
        None => None,
        Some(_) => Some(response_text(loaded, settings, response)?),
    };
    Ok(Row {
        index,
        sample: response.sample,
        text,
        ids: &response.ids,
        logprobs: &response.logprobs,
        finish_reason: response.finish.name(),
    })
}

/// A response's text, up to a stop text.
pub fn response_text(loaded: &Loaded, settings: &Settings, response: &Response) -> CommandResult<String> {
    Ok(before_stop(text_of(loaded, &response.ids)?, &settings.sampler.stop_strings))
}

fn text_of(loaded: &Loaded, ids: &[u32]) -> CommandResult<String> {
    Ok(loaded.model.tokenizer()?.decode(ids, true)?)
}

/// The text up to the first stop text.
pub fn before_stop(mut text: String, stops: &[String]) -> String {
    if let Some(end) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(end);
    }
    text
}

/// Counts tokens and responses for the progress.
pub struct Meter<'u> {
    ui: &'u Ui,
    started: Instant,
    shown: Instant,
    total: u64,
    done: u64,
    tokens: u64,
}

impl<'u> Meter<'u> {
    /// For this many responses.
    pub fn new(ui: &'u Ui, total: u64) -> Self {
        let now = Instant::now();
        Self { ui, started: now, shown: now, total, done: 0, tokens: 0 }
    }

    fn token(&mut self, event: &TokenEvent) {
        self.tokens += 1;
        self.done += u64::from(event.finish.is_some());
        if self.shown.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.shown = Instant::now();
        let elapsed = self.started.elapsed().as_secs_f64();
        let rate = (self.done > 0).then(|| self.done as f64 / elapsed);
        self.ui.progress(&Work {
            label: "generate",
            done: self.done,
            total: self.total,
            unit: "response",
            rate_per_s: rate,
            remaining_s: rate.map(|rate| (self.total - self.done) as f64 / rate),
        });
    }

    /// Says what was done.
    pub fn finish(&self) {
        self.ui.end_progress();
        let seconds = self.started.elapsed().as_secs_f64();
        self.ui.note(&format!(
            "{} {}, {} tokens in {}, {} tokens/s",
            self.done,
            plural("response", self.done),
            self.tokens,
            duration(seconds),
            short(self.tokens as f64 / seconds)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_before_the_first_stop() {
        let check = |text: &str, stops: &[&str], expect: &str| {
            let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
            assert_eq!(before_stop(text.to_owned(), &stops), expect);
        };
        check("one two three", &[], "one two three");
        check("one two three", &["three", "two"], "one ");
        check("one", &["x"], "one");
    }
}
