//! The crate from outside: a corpus of bad files, real data, every kind of row, other writers' tables, random
//! damage.

mod corpus;
mod fuzz;
mod real_data;
mod table;
mod typed;
