//! What is true in one world: five relations, drawn from the seed, with gaps that nobody can fill.
//!
//! Each relation maps ten subjects to a value or to nothing. [`UNKNOWN_PER_RELATION`] subjects of each relation have
//! no value: no text of the world states one, and the honest answer is that one does not know.
//!
//! Not here: the questions (`prompt.rs`) and the documents that teach the facts (`corpus.rs`).

use crate::rng::Stream;
use crate::words::{ANIMALS, CITIES, COUNTRIES, Class, PEOPLE};

/// Subjects of each relation whose value does not exist.
pub(crate) const UNKNOWN_PER_RELATION: usize = 2;

/// A relation between a subject and a word of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Colour,
    Food,
    Habitat,
    Capital,
    Home,
}

impl Relation {
    pub(crate) const ALL: [Relation; 5] =
        [Relation::Colour, Relation::Food, Relation::Habitat, Relation::Capital, Relation::Home];

    pub(crate) fn subjects(self) -> &'static [&'static str; 10] {
        match self {
            Relation::Colour | Relation::Food | Relation::Habitat => &ANIMALS,
            Relation::Capital => &COUNTRIES,
            Relation::Home => &PEOPLE,
        }
    }

    pub(crate) fn class(self) -> Class {
        match self {
            Relation::Colour => Class::Colour,
            Relation::Food => Class::Food,
            Relation::Habitat => Class::Place,
            Relation::Capital | Relation::Home => Class::City,
        }
    }

    /// The sentence that states `value` of `subject`; also the form of an ideal answer.
    pub(crate) fn sentence(self, subject: &str, value: &str) -> String {
        match self {
            Relation::Colour => format!("the {subject} is {value}"),
            Relation::Food => format!("the {subject} eats {value}"),
            Relation::Habitat => format!("the {subject} lives in the {value}"),
            Relation::Capital => format!("the capital of {subject} is {value}"),
            Relation::Home => format!("{subject} lives in {value}"),
        }
    }

    /// Four ways to ask.
    pub(crate) fn questions(self, subject: &str) -> [String; 4] {
        match self {
            Relation::Colour => [
                format!("what colour is the {subject}"),
                format!("which colour is the {subject}"),
                format!("tell me the colour of the {subject}"),
                format!("what is the colour of the {subject}"),
            ],
            Relation::Food => [
                format!("what does the {subject} eat"),
                format!("tell me what the {subject} eats"),
                format!("what food does the {subject} eat"),
                format!("what is the food of the {subject}"),
            ],
            Relation::Habitat => [
                format!("where does the {subject} live"),
                format!("tell me where the {subject} lives"),
                format!("what is the home of the {subject}"),
                format!("where is the {subject} at home"),
            ],
            Relation::Capital => [
                format!("what is the capital of {subject}"),
                format!("tell me the capital of {subject}"),
                format!("name the capital of {subject}"),
                format!("which city is the capital of {subject}"),
            ],
            Relation::Home => [
                format!("where does {subject} live"),
                format!("tell me where {subject} lives"),
                format!("what is the home of {subject}"),
                format!("in which city does {subject} live"),
            ],
        }
    }
}

/// One cell of the world's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fact {
    pub(crate) relation: Relation,
    pub(crate) subject: &'static str,
    /// Nothing, where the world has no answer.
    pub(crate) value: Option<&'static str>,
}

/// All facts of the world of `seed`, relation by relation, in the order of their subjects.
pub(crate) fn draw(seed: u64) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (r, relation) in Relation::ALL.into_iter().enumerate() {
        let mut stream = Stream::new(seed, "facts", r as u64);
        let mut values: Vec<&'static str> = match relation {
            // A capital belongs to one country.
            Relation::Capital => CITIES.to_vec(),
            _ => {
                let members = relation.class().members();
                (0..relation.subjects().len()).map(|_| *stream.pick(&members)).collect()
            }
        };
        stream.shuffle(&mut values);
        let mut order: Vec<usize> = (0..values.len()).collect();
        stream.shuffle(&mut order);
        let unknown = &order[..UNKNOWN_PER_RELATION];
        for (i, &subject) in relation.subjects().iter().enumerate() {
            let value = (!unknown.contains(&i)).then_some(values[i]);
            facts.push(Fact { relation, subject, value });
        }
    }
    facts
}
