//! Responses to a few fixed prompts over time: what the curves cannot show.

use polity_compute::Batch;
use polity_lm::engine::{Engine, Flow, Limits, Request, SamplerConfig};

use crate::error::TrainError;
use crate::learner::{Frozen, Learner};
use crate::progress::{Event, Host, Sample};
use crate::run::RunDir;

/// A prompt whose responses are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplePrompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
}

/// Tokens of a shown response.
const SAMPLE_TOKENS_MAX: usize = 64;

/// Draws one response to each prompt at temperature 1 (the same random numbers every time, so that two steps
/// differ by the model alone), and writes and tells them, with the reward model's score where there is one. A model with
/// a scalar head has nothing to say.
pub(crate) fn draw_samples(
    learner: &mut Learner<'_>,
    mut reward_model: Option<&mut Frozen<'_>>,
    prompts: &[SamplePrompt],
    step: u64,
    seed: u64,
    run: &mut RunDir,
    host: &mut dyn Host,
) -> Result<(), TrainError> {
    let Ok(tokenizer) = learner.model.tokenizer().cloned() else { return Ok(()) };
    let positions_max = learner.model.config.positions_max;
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .filter(|(_, prompt)| prompt.ids.len() < positions_max)
        .map(|(i, prompt)| Request { ids: prompt.ids.clone(), samples: 1, prompt_id: i as u64 })
        .collect();
    if requests.is_empty() || learner.model.config.head == polity_compute::Head::Scalar {
        return Ok(());
    }
    let config = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_new_tokens: SAMPLE_TOKENS_MAX,
        min_new_tokens: 0,
        stop_token_ids: learner.model.generation.eos.clone(),
        stop_strings: Vec::new(),
        vocab: learner.model.tokenizer_vocab(),
    };
    let (cpu, decoder, params, tape) = learner.engine_parts();
    let responses = Engine::new(cpu, decoder, params, Limits::usual(), tape).generate(
        &requests,
        &config,
        seed,
        &|_| String::new(),
        &mut |_| Flow::Continue,
    );
    for response in responses {
        let prompt_index = requests[response.request].prompt_id as usize;
        let score = reward_model
            .as_mut()
            .and_then(|model| score(model, &prompts[prompt_index].ids, &response.ids))
            .map(f64::from);
        let sample = Sample {
            step,
            prompt_index,
            prompt: prompts[prompt_index].text.clone(),
            response: tokenizer.decode(&response.ids, true)?,
            response_tokens: response.ids.len() as u64,
            stopped: response.finish == polity_lm::engine::Finish::Stop,
            score,
        };
        run.log_sample(&sample)?;
        host.event(Event::Sample(&sample));
    }
    Ok(())
}

/// The reward model's score of a response; `None` where it has no position for the last token.
fn score(model: &mut Frozen<'_>, prompt: &[u32], response: &[u32]) -> Option<f32> {
    if prompt.len() + response.len() > model.model.config.positions_max {
        return None;
    }
    let mut batch = Batch::new();
    let prompt = batch.push(prompt, None);
    let response = batch.push(response, Some(prompt));
    let last = batch.last_row(response)?;
    model.scalars(&batch, &[last]).first().copied()
}
