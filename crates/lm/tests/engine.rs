//! Laws of generation: a response does not depend on when it came, what ran beside it, nor how its prompt was cut.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use polity_compute::{Batch, Cpu, Decoder, Recompute, Tape};
use polity_lm::Model;
use polity_lm::engine::{Engine, Event, Finish, Flow, Job, Limits, Request, SamplerConfig, Scored};

fn model() -> (Model, Decoder) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    let model = Model::load(dir).unwrap();
    let decoder = Decoder::new(model.config.clone()).unwrap();
    (model, decoder)
}

fn sampler(temperature: f32, max_new_tokens: usize) -> SamplerConfig {
    SamplerConfig {
        temperature,
        top_k: 0,
        top_p: 0.95,
        min_p: 0.0,
        repetition_penalty: 1.1,
        max_new_tokens,
        min_new_tokens: 0,
        stop_token_ids: vec![2],
        stop_strings: vec![],
        vocab: 512,
    }
}

/// Prompts of 1 to 75 tokens, each with settings of its own.
fn jobs() -> Vec<Job> {
    let job = |id: u64| Job {
        id,
        ids: std::iter::once(1).chain((0..id * 37 % 75).map(|i| 3 + ((i * 31 + id) % 400) as u32)).collect(),
        samples: 1 + id as usize % 3,
        prompt_id: id % 2,
        seed: 100 + id,
        sampler: Arc::new(sampler([0.0, 0.7, 1.0][id as usize % 3], 5 + 9 * id as usize)),
        top: id as usize % 4,
        score_prompt: id.is_multiple_of(2),
    };
    (0..9).map(job).collect()
}

type Told = (Vec<u32>, Vec<u32>, Option<Finish>);

#[test]
fn a_response_does_not_know_its_neighbours() {
    let (model, decoder) = model();
    let (cpu, mut tape) = (Cpu::new(2), Tape::default());
    let limits = Limits { sequences_max: 8, prefill_tokens_max: 7 };
    let mut engine = Engine::new(&cpu, &decoder, &model.params, limits, &mut tape);
    let mut told: BTreeMap<(u64, usize), Told> = BTreeMap::new();
    let mut prompts: BTreeMap<u64, Vec<Scored>> = BTreeMap::new();
    let mut waiting = jobs().into_iter().peekable();
    // A neighbour that goes in the middle.
    engine.admit(Job { id: 99, samples: 2, ..jobs()[8].clone() });
    for step in 0.. {
        if step == 20 {
            engine.cancel(99);
        }
        if step % 3 == 0
            && let Some(job) = waiting.next_if(|job| engine.has_sequences(job.samples))
        {
            engine.admit(job);
        }
        engine.step(&mut |event| {
            match event {
                Event::Prompt { job, scored } => assert!(prompts.insert(job, scored).is_none()),
                Event::Token { job, sample, scored, finish, .. } => {
                    let told = told.entry((job, sample)).or_default();
                    assert_eq!(told.2, None, "nothing after the end");
                    told.0.push(scored.token);
                    told.1.push(scored.logprob.to_bits());
                    told.2 = finish;
                }
            }
            Flow::Continue
        });
        assert!(engine.pages_in_use() <= engine.pages_reserved(), "step {step}");
        if engine.is_idle() && waiting.peek().is_none() {
            break;
        }
    }
    assert_eq!((engine.pages_in_use(), engine.pages_reserved()), (0, 0));
    told.retain(|(job, _), _| *job != 99);
    prompts.remove(&99);

    let mut one_tape = Tape::default();
    for job in jobs() {
        let mut alone = Engine::new(&cpu, &decoder, &model.params, Limits::usual(), &mut one_tape);
        let Job { id, ids, samples, prompt_id, .. } = job.clone();
        let request = Request { ids, samples, prompt_id };
        let responses =
            alone.generate(&[request], &job.sampler, job.seed, &|_| String::new(), &mut |_| Flow::Continue);
        assert_eq!(responses.len(), samples);
        for response in responses {
            let bits = response.logprobs.iter().map(|logprob| logprob.to_bits()).collect();
            let expect = (response.ids, bits, Some(response.finish));
            assert_eq!(
                told.remove(&(id, response.sample)),
                Some(expect),
                "job {id} sample {}",
                response.sample
            );
        }
        check_prompt(&cpu, &model, &decoder, &job, prompts.remove(&id));
    }
    assert!(told.is_empty() && prompts.is_empty(), "nothing else was told");
}

/// The scores of a prompt are those of a forward pass over it.
fn check_prompt(cpu: &Cpu, model: &Model, decoder: &Decoder, job: &Job, scored: Option<Vec<Scored>>) {
    assert_eq!(scored.is_some(), job.score_prompt);
    let Some(scored) = scored else { return };
    assert_eq!(scored.len(), job.ids.len() - 1);
    if scored.is_empty() {
        return;
    }
    let (batch, mut tape) = (Batch::from_rows([&job.ids[..]]), Tape::default());
    decoder.forward(cpu, &model.params, &batch, Recompute::None, &mut tape);
    let predictions = batch.predict(0, 1);
    let temperature = job.sampler.logit_temperature();
    let expect = decoder.logprobs(cpu, &model.params, &mut tape, &predictions, temperature);
    let rows: Vec<usize> = predictions.iter().map(|p| p.row).collect();
    let logits = decoder.logits(cpu, &model.params, &mut tape, &rows, temperature);
    for (t, scored) in scored.iter().enumerate() {
        assert_eq!(scored.token, job.ids[t + 1]);
        assert_eq!(scored.logprob.to_bits(), expect.logprob_m[t].to_bits(), "token {t} of job {}", job.id);
        let y_v = &logits[t * 512..(t + 1) * 512];
        let mut order: Vec<u32> = (0..512).collect();
        order.sort_by(|&a, &b| y_v[b as usize].total_cmp(&y_v[a as usize]).then(a.cmp(&b)));
        let top: Vec<u32> = scored.top.iter().map(|(v, _)| *v).collect();
        assert_eq!(top, order[..job.top], "token {t} of job {}", job.id);
        let log_sum = y_v.iter().map(|y| f64::from(*y).exp()).sum::<f64>().ln();
        for &(v, logprob) in &scored.top {
            let expect = f64::from(y_v[v as usize]) - log_sum;
            assert!((f64::from(logprob) - expect).abs() < 1e-5, "{logprob} {expect}");
        }
    }
}

#[test]
fn a_prompt_alone_can_be_scored() {
    let (model, decoder) = model();
    let (cpu, mut tape) = (Cpu::new(1), Tape::default());
    let mut engine = Engine::new(&cpu, &decoder, &model.params, Limits::usual(), &mut tape);
    let job = Job { samples: 0, score_prompt: true, top: 1, ..jobs()[4].clone() };
    engine.admit(job.clone());
    let mut told = None;
    engine.step(&mut |event| {
        match event {
            Event::Prompt { scored, .. } => told = Some(scored),
            other => panic!("{other:?}"),
        }
        Flow::Continue
    });
    assert!(engine.is_idle() && engine.pages_in_use() == 0);
    check_prompt(&cpu, &model, &decoder, &job, told);
}
