//! Everything durable: prompts, responses, comparisons, votes, datasets, accounts and the ledger; in one SQLite file, or in PostgreSQL.
//!
//! ```no_run
//! # async fn example(seed: [u8; 32], now_ms: i64) -> polity_store::Result<()> {
//! use polity_store::{Answer, Content, Material, NewComparison, NewPrompt, NewResponse, NewVote, Next, Store, prompt_id, response_id};
//!
//! let store = Store::open("project/store.db", seed, now_ms).await?;
//!
//! // Material: named by what it says, so adding it twice adds it once.
//! let prompt = Content::plain("What is the capital of France?");
//! let id = prompt_id(&prompt);
//! let response = |text: &str, model: &str| NewResponse {
//!     prompt_id: id.clone(), content: Content::plain(text), model: model.into(), model_hash: None,
//!     sampler: None, sample_index: None, origin: "example".into(),
//! };
//! let (good, bad) = (response("Paris.", "m1"), response("Lyon.", "m2"));
//! let responses = [&good, &bad].map(|r| response_id(&id, &r.content, &r.model));
//! store.add_material(Material {
//!     prompts: vec![NewPrompt { content: prompt, category: "facts".into(), origin: "example".into() }],
//!     responses: vec![good, bad],
//!     comparisons: vec![NewComparison { prompt_id: id.clone(), responses, wanted: 3, queued: true, origin: "example".into() }],
//! }, now_ms).await?;
//!
//! // Annotation: an account is an annotator of the same id. Ask, show, answer.
//! let (account, _password) = store.account_by_name("ann").await?;
//! if let Next::Assignment(given) = store.next(&account.id, now_ms).await? {
//!     let texts = store.comparison(&given.comparison_id).await?;   // show given.left_response on the left
//!     let vote = NewVote {
//!         annotator_id: account.id.clone(), assignment_id: given.id, overall: Answer::Tie,
//!         axes: Default::default(), reason: String::new(), shown_ms: Some(now_ms), work_ms: Some(9000),
//!     };
//!     let voted = store.vote(vote, now_ms).await?;                 // on the disk when this returns
//!     store.undo(&account.id, now_ms).await?;                      // the same comparison again
//! }
//! # Ok(()) }
//! ```
//!
//! | to | see |
//! |---|---|
//! | make or open a store, set its policy | [`Store::create`], [`Store::open`], [`Policy`] |
//! | add and read texts | [`Material`], [`Store::add_material`], [`Store::comparison`] |
//! | sign people up and in, by role | [`Store::add_invite`], [`Store::accept_invite`], [`Store::begin_session`], [`Store::session`], [`Store::token_account`] |
//! | hand out, vote, undo | [`Store::next`], [`Store::vote`], [`Store::undo`], [`Store::release`] |
//! | versions of the rubric | [`Store::add_rubric`], [`Store::rubrics`] |
//! | known answers | [`Store::set_calibration`], [`Store::standing`], [`Store::calibration_answers`] |
//! | judges that are programs | [`Store::machine_vote`], [`Store::unjudged`] |
//! | simulated annotators | [`Simulation`], [`Store::simulate`] |
//! | disagreement and decisions | [`Store::review_queue`], [`Store::adjudicate`] |
//! | votes for statistics | [`Store::judgements`], [`panel_votes`], [`Store::model_labels`] |
//! | freeze and read datasets | [`Store::freeze`], [`Store::dataset_rows`], [`DatasetRow::label`] |
//! | files of other tools in, trainers' rows out | [`read_import`], [`Store::import`], [`ExportRow`] |
//! | what the gate said, who approved | [`Store::add_verdict`], [`Store::approve`], [`Store::may_release`] |
//! | what is released where | [`Store::channel`], [`Store::add_release`], [`Store::add_rollback`] |
//! | the ledger | [`Store::append_event`], [`Store::events`], [`Store::seal_votes`], [`Store::verify`] |
//!
//! **What holds.** An `Ok` from a change means that it is on the disk. Votes, texts, rubrics, decisions, datasets and events are only
//! ever added. A comparison is never handed to more annotators than it wants judgements, nor twice to the same one. Times are the
//! caller's milliseconds since 1970; randomness comes from the seed that the store was opened with.
//!
//! Futures must be driven by a tokio runtime; [`Store`] is cheap to clone and safe to share. Call [`Store::close`] before the process ends.
//!
//! Not here: pages and the HTTP API (`polity-web`), statistics (`polity-stats`), anything that computes with a model.

#![forbid(unsafe_code)]

mod db;
mod error;
mod id;
mod migrate;
mod sql;

mod account;
mod content;
mod identity;
mod project;
mod rubric;

mod answer;
mod assign;
mod calibration;
mod machine;
mod panel;
mod simulate;
mod vote;

mod approval;
mod document;
mod release;
mod verdict;

mod dataset;
mod export;
mod feedback;
mod import;
mod ledger;
mod look;
mod progress;
mod review;
mod similar;
mod verify;

pub use account::{Account, Annotator, AnnotatorKind, ApiToken, Invite, Role, Session};
pub use answer::{Answer, Side};
pub use approval::{Answered, Approval, Asked, ChannelRule, Grounds, Refusal};
pub use assign::{Assignment, Kind, Next, Nothing};
pub use calibration::{CalibrationAnswer, CalibrationItem, Standing};
pub use content::{
    Added, Comparison, ComparisonTexts, Content, Material, NewComparison, NewPrompt, NewResponse, Part,
    Prompt, Response, UNCATEGORISED, comparison_id, prompt_id, response_id,
};
pub use dataset::{Dataset, DatasetRow, DatasetTexts, Freeze, Label, LabelRule, LeftOut, ModelLabels};
pub use db::{Backend, JOBS_PER_COMMIT, Store};
pub use document::document_hash;
pub use error::{Result, StoreError};
pub use export::{ExportOptions, ExportRow};
pub use feedback::{FeedbackRecord, NewFeedback, SERVING, ServedAnswer};
pub use id::{content_id, hash_parts};
pub use identity::identity_leak;
pub use import::{
    Duplicates, ImportFormat, ImportOptions, Imported, ImportedVote, Parsed, Take, read as read_import,
};
pub use ledger::{EVENT_KINDS, Event, GENESIS, NOBODY, Recorded};
pub use look::{HoldoutVote, Look, Looks};
pub use machine::MachineVote;
pub use migrate::SCHEMA_VERSION;
pub use panel::panel_votes;
pub use progress::Progress;
pub use project::{NewProject, Policy, Project};
pub use release::{ChannelState, NewRelease, Release, Rollback};
pub use review::{Adjudication, ReviewItem};
pub use rubric::{Axis, Example, Rubric, RubricVersion};
pub use similar::similarity;
pub use simulate::{Shown, Simulation};
pub use verdict::{EvaluationRecord, NewVerdict, Run, RunInput, Verdict};
pub use verify::{Bad, Verification};
pub use vote::{
    CHAIN_START, Feedback, Judgement, JudgementFilter, NewVote, REASON_BYTES_MAX, VoteRecord, Voted,
};
