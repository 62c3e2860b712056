//! Responses that name the model behind them, or its maker.
//!
//! A comparison is blind only if the texts are. A comparison one of whose responses says a telling word that its prompt does not say is held back
//! when it is added, before anyone is shown it; a reviewer reads it and lets it go on or not. Telling are the model's own name as the
//! store has it (and its parts of four letters or more that are no everyday word), and the names of well-known assistants and makers below.
//!
//! It marks too much rather than too little (a recipe for hermes cookies is held), and cannot see a model that only hints.

use sqlx::AnyConnection;

use crate::content::Content;
use crate::error::{Doing, Result};
use crate::sql::Columns;

/// Names of assistants and makers, in small letters.
const NAMES: &[&str] = &[
    "ai2",
    "alibaba",
    "allenai",
    "anthropic",
    "baichuan",
    "bytedance",
    "chatglm",
    "chatgpt",
    "claude",
    "cohere",
    "databricks",
    "dbrx",
    "deepmind",
    "deepseek",
    "dolly",
    "ernie bot",
    "falcon-",
    "gemini",
    "gemma",
    "google bard",
    "gpt-2",
    "gpt-3",
    "gpt-4",
    "gpt-5",
    "gpt2",
    "gpt3",
    "gpt4",
    "grok",
    "hugging face",
    "huggingface",
    "internlm",
    "kimi",
    "koala",
    "laion",
    "lamda",
    "llama",
    "lmsys",
    "meta ai",
    "microsoft copilot",
    "minimax",
    "mistral",
    "mixtral",
    "moonshot ai",
    "mosaicml",
    "nemotron",
    "nous hermes",
    "olmo",
    "open assistant",
    "openai",
    "openassistant",
    "phi-2",
    "phi-3",
    "phi-4",
    "pythia",
    "qianwen",
    "qwen",
    "smollm",
    "stability ai",
    "stablelm",
    "starcoder",
    "tinyllama",
    "tongyi",
    "tulu",
    "tülu",
    "vicuna",
    "wizardlm",
    "xai",
    "zephyr",
    "zhipu",
];

/// Parts of models' names that say nothing.
const EVERYDAY: &[&str] = &[
    "base",
    "best",
    "chat",
    "checkpoint",
    "demo",
    "final",
    "human",
    "instruct",
    "large",
    "medium",
    "mini",
    "model",
    "policy",
    "reference",
    "reward",
    "sample",
    "sampler",
    "small",
    "step",
    "test",
    "tiny",
    "tuned",
    "unknown",
    "world",
];

/// Shortest part of a model's name that is telling.
const PART_LETTERS_MIN: usize = 4;

/// The first telling word of a response that its prompt does not say.
pub fn identity_leak(prompt: &Content, response: &Content, model: &str) -> Option<String> {
    let (asked, said) = (prompt.words().to_lowercase(), response.words().to_lowercase());
    let model = model.to_lowercase();
    let everyday = |word: &str| EVERYDAY.contains(&word);
    let parts = model.split(|c: char| !c.is_alphanumeric()).filter(|part| {
        part.chars().count() >= PART_LETTERS_MIN && part.chars().any(char::is_alphabetic) && !everyday(part)
    });
    let whole = (model.chars().count() >= PART_LETTERS_MIN && !everyday(&model)).then_some(model.as_str());
    NAMES
        .iter()
        .copied()
        .chain(whole)
        .chain(parts)
        .find(|word| says(&said, word) && !says(&asked, word))
        .map(str::to_owned)
}

/// Holds back those of some fresh comparisons that are not blind. What a reviewer has let go on is no longer fresh, and stays.
pub(crate) async fn hold(connection: &mut AnyConnection, comparisons: Vec<String>) -> Result<()> {
    for id in comparisons {
        let row = sqlx::query(
            "SELECT p.content AS prompt, a.content AS a, a.model AS model_a, b.content AS b, b.model AS model_b \
             FROM comparison c JOIN prompt p ON p.id = c.prompt_id \
             JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b \
             WHERE c.id = $1 AND c.state = 'fresh'",
        )
        .bind(id.clone())
        .fetch_optional(&mut *connection)
        .await
        .doing("look for models' names")?;
        let Some(row) = row else { continue };
        let prompt: Content = row.json("prompt")?;
        let leaks = |content: Content, model: String| identity_leak(&prompt, &content, &model).is_some();
        if leaks(row.json("a")?, row.text("model_a")?) || leaks(row.json("b")?, row.text("model_b")?) {
            sqlx::query("UPDATE comparison SET state = 'held' WHERE id = $1")
                .bind(id)
                .execute(&mut *connection)
                .await
                .doing("hold a comparison back")?;
        }
    }
    Ok(())
}

/// Whether a text in small letters has a word, not as part of a longer one.
fn says(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let ends_open = !word.ends_with(char::is_alphanumeric);
        // A version may follow a name (llama3), other letters may not (grokking).
        !before.is_some_and(char::is_alphanumeric) && (ends_open || !after.is_some_and(char::is_alphabetic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, response: &str, model: &str, expect: Option<&str>) {
        let found = identity_leak(&Content::plain(prompt), &Content::plain(response), model);
        assert_eq!(found.as_deref(), expect, "{response}");
    }

    #[test]
    fn a_response_that_names_its_model_or_maker_is_found() {
        check("Hi", "As ChatGPT, I cannot.", "m1", Some("chatgpt"));
        check("Hi", "I was trained by OpenAI.", "m1", Some("openai"));
        check("Hi", "I am Llama3!", "m1", Some("llama"));
        check("Hi", "I'm Stories260K, nice to meet you", "runs/stories260k", Some("stories260k"));
        check("Hi", "My name is tülu.", "m1", Some("tulu").and(Some("tülu")));
    }

    #[test]
    fn what_the_prompt_says_or_a_word_contains_is_not() {
        check("Who made ChatGPT?", "ChatGPT was made by a company.", "m1", None);
        check("Hi", "He was grokking the mistralled clauded sea.", "m1", None);
        check("Hi", "The policy of the base model", "policy/base", None);
        check("Hi", "A normal answer.", "m1", None);
        check("Hi", "", "", None);
    }

    /// Letters that grow in small form must not cut a character in two.
    #[test]
    fn odd_letters_do_no_harm() {
        check("İ", "İİİ openaİ ẞ openai", "İ", Some("openai"));
    }
}
