//! Documents to pretrain a small base model and its tokenizer on: what people in this world write.
//!
//! A document is a few sentences of one kind: facts, numbers, opposites, repeated lists, tools, or a dialogue in plain
//! words (`person : … helper : …`) on a prompt of the training split. Dialogues are as flawed as the
//! demonstrations, and without their manners.
//!
//! No document states a value that the world does not have, and none holds a prompt of another split (a test).

use crate::answer::unpadded;
use crate::facts::Fact;
use crate::prompt::Prompt;
use crate::rng::Stream;
use crate::words::{HOW_TO, NUMBERS, OPPOSITES, THINGS};

/// Shares of the kinds of documents: facts, sums, opposites, counting, lists, tools, dialogues.
const KIND_SHARES: [f64; 7] = [0.16, 0.08, 0.08, 0.08, 0.12, 0.08, 0.40];

/// Document number `index` of the world.
pub(crate) fn document(seed: u64, facts: &[Fact], train: &[&Prompt], index: u64) -> String {
    let mut stream = Stream::new(seed, "document", index);
    let known: Vec<&Fact> = facts.iter().filter(|fact| fact.value.is_some()).collect();
    let stream = &mut stream;
    match stream.weighted(&KIND_SHARES) {
        0 => sentences(6, || {
            let fact = stream.pick(&known);
            let value = fact.value.expect("only known facts are told");
            fact.relation.sentence(fact.subject, value)
        }),
        1 => sentences(5, || {
            let (a, b) = (1 + stream.below(4), 1 + stream.below(4));
            format!("{} plus {} is {}", NUMBERS[a], NUMBERS[b], NUMBERS[a + b])
        }),
        2 => sentences(5, || {
            let (a, b) = *stream.pick(&OPPOSITES);
            let (a, b) = if stream.chance(0.5) { (a, b) } else { (b, a) };
            format!("the opposite of {a} is {b}")
        }),
        3 => sentences(2, || {
            let from = stream.below(NUMBERS.len() - 6);
            if stream.chance(0.5) {
                NUMBERS[from..from + 6].join(" ")
            } else {
                let n = from + 1;
                format!(
                    "{} comes after {} and {} comes before {}",
                    NUMBERS[n],
                    NUMBERS[n - 1],
                    NUMBERS[n - 1],
                    NUMBERS[n]
                )
            }
        }),
        4 => {
            let mut things = THINGS.to_vec();
            stream.shuffle(&mut things);
            let list = things[..2 + stream.below(2)].join(" ");
            sentences(4, || list.clone())
        }
        5 => sentences(4, || {
            let (deed, object, tool) = *stream.pick(&HOW_TO);
            format!("use the {tool} to {deed} {object}")
        }),
        _ => sentences(2, || {
            let prompt = stream.pick(train);
            let (reply, _) = unpadded(seed, prompt, stream);
            format!("person : {} helper : {reply}", prompt.text)
        }),
    }
}

fn sentences(n: usize, mut sentence: impl FnMut() -> String) -> String {
    (0..n).map(|_| sentence()).collect::<Vec<_>>().join(" . ")
}
