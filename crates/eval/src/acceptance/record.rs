//! An acceptance on disk: a policy, an evaluation and the verdict, in one file beside the reward model.
//!
//! ```json
//! {"made_unix_ms": 1795850000000, "policy": "name = \"reward-model\" …", "evaluation": {…}, "verdict": {…}}
//! ```
//!
//! The evaluation names the model by its hash. Reading judges again: a file whose verdict is not what its own policy says of its own
//! numbers is refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::gate::{Models, Policy, Verdict, judge};
use crate::{EvalError, Evaluation};

/// A verdict on a reward model, with everything it follows from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// When it was made, milliseconds since 1970.
    pub made_unix_ms: i64,
    /// The policy's text.
    pub policy: String,
    /// What was measured.
    pub evaluation: Evaluation,
    /// What the policy says of it.
    pub verdict: Verdict,
}

impl Acceptance {
    /// Judges an evaluation by a policy, given as its text and where that is from.
    pub fn new(
        file: &Path,
        policy: &str,
        evaluation: Evaluation,
        made_unix_ms: i64,
    ) -> Result<Acceptance, EvalError> {
        let models = Models { candidate: evaluation.model.clone(), baseline: None, last_release: None };
        let verdict = judge(&Policy::parse(file, policy)?, &models, std::slice::from_ref(&evaluation))?;
        Ok(Acceptance { made_unix_ms, policy: policy.to_owned(), evaluation, verdict })
    }

    /// Reads a file and judges again.
    pub fn read(file: &Path) -> Result<Acceptance, EvalError> {
        let wrong = |message: String| EvalError::Measures { file: file.to_owned(), message };
        let text = std::fs::read_to_string(file)
            .map_err(|source| EvalError::Read { file: file.to_owned(), source })?;
        let said: Acceptance =
            serde_json::from_str(&text).map_err(|error| wrong(format!("no acceptance: {error}")))?;
        said.evaluation.check().map_err(wrong)?;
        let again = Acceptance::new(file, &said.policy, said.evaluation.clone(), said.made_unix_ms)?;
        let decisions = |verdict: &Verdict| {
            let each: Vec<_> = verdict.criteria.iter().map(|one| (one.id.clone(), one.verdict)).collect();
            (verdict.candidate.clone(), verdict.verdict, each)
        };
        match decisions(&again.verdict) == decisions(&said.verdict) {
            true => Ok(said),
            false => Err(wrong(format!(
                "says {}, and judged again it is {}: it was changed; measure the model again with polity eval",
                said.verdict.verdict.name(),
                again.verdict.verdict.name()
            ))),
        }
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, file: &Path) -> Result<(), EvalError> {
        use std::io::Write;
        let text = serde_json::to_string(self).expect("numbers and texts are JSON");
        Ok(polity_rows::atomic_write(file, |out| out.write_all(text.as_bytes()))?)
    }
}
