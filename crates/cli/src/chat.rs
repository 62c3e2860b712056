//! `polity chat`: a conversation in the terminal, or line by line through a pipe.
//!
//! Each turn renders the whole conversation through the model's chat template and streams the answer. A model without a
//! template continues the text instead; that is said once. Ctrl-C stops an answer (what was said stays in the
//! conversation), and leaves when nothing is being said.
//!
//! The answer goes to stdout, everything else to stderr. With `--json` an answer is one line of JSON when it is whole.
//!
//! Not here: templates and sampling (`lm`).

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use polity_compute::Tape;
use polity_lm::chat::message;
use polity_lm::engine::{Engine, Finish, Flow, Limits, Request, Response, TokenEvent};
use polity_lm::{ChatOptions, ChatTemplate, LmError, StreamDecoder, Tokenizer};
use serde::Serialize;
use serde_json::Value;

use crate::args::{ChatArgs, Global};
use crate::error::{CommandError, CommandResult, Kind};
use crate::generate::before_stop;
use crate::host::Interrupts;
use crate::model::Loaded;
use crate::output::{stdout_error, to_stdout};
use crate::settings::{Read, Settings, Uses};
use crate::ui::Ui;

/// What stands before a line to be typed.
const PROMPT: &str = "> ";

const HELP: &str = "/reset begins a new conversation, /exit leaves, Ctrl-C stops an answer";

/// An answer with `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    role: &'static str,
    content: &'a str,
    prompt_tokens: usize,
    tokens: usize,
    finish_reason: &'static str,
}

/// Runs the verb.
pub fn run(args: &ChatArgs, global: &Global, ui: &Ui) -> CommandResult {
    let mut loaded = Loaded::language_model(&args.model, "chat", global)?;
    let tokenizer = loaded.model.tokenizer()?.clone();
    let Read { settings, warnings } = Settings::read(Uses::Chat, &args.model, &loaded.model, &args.sets)?;
    warnings.iter().for_each(|warning| ui.warn(warning));
    loaded.multiply_in(settings.precision);
    let template = loaded.template()?;
    if template.is_none() {
        if args.system.is_some() {
            return Err(CommandError::bad_input(format!(
                "--system needs a chat template, and {} has none",
                args.model.display()
            ))
            .hint("leave --system out: the model continues plain text"));
        }
        ui.note("this model has no chat template: it continues what you type, as plain text");
    }
    let interactive = io::stdin().is_terminal();
    if interactive {
        ui.note(HELP);
    }
    let mut session = Session {
        loaded: &loaded,
        tokenizer,
        settings,
        interrupts: Interrupts::install(ui, "")?,
        ui,
        conversation: Conversation::new(template, args.system.as_deref()),
        tape: Tape::default(),
        turn: 0,
    };
    session.run(interactive)
}

/// What has been said.
enum Conversation {
    /// Messages for a template; the first `kept` stay when it is reset.
    Messages { template: Box<ChatTemplate>, messages: Vec<Value>, kept: usize },
    /// Text to continue.
    Plain(String),
}

impl Conversation {
    fn new(template: Option<ChatTemplate>, system: Option<&str>) -> Self {
        match template {
            None => Conversation::Plain(String::new()),
            Some(template) => {
                let messages: Vec<Value> = system.map(|text| message("system", text)).into_iter().collect();
                let kept = messages.len();
                Conversation::Messages { template: Box::new(template), messages, kept }
            }
        }
    }

    fn reset(&mut self) {
        match self {
            Conversation::Messages { messages, kept, .. } => messages.truncate(*kept),
            Conversation::Plain(text) => text.clear(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Conversation::Messages { messages, .. } => messages.len(),
            Conversation::Plain(text) => text.len(),
        }
    }

    /// Takes back what was said since it had this length.
    fn truncate(&mut self, len: usize) {
        match self {
            Conversation::Messages { messages, .. } => messages.truncate(len),
            Conversation::Plain(text) => text.truncate(len),
        }
    }

    fn ask(&mut self, line: &str) {
        match self {
            Conversation::Messages { messages, .. } => messages.push(message("user", line)),
            Conversation::Plain(text) => {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(line);
            }
        }
    }

    fn answer(&mut self, said: &str) {
        match self {
            Conversation::Messages { messages, .. } => messages.push(message("assistant", said)),
            Conversation::Plain(text) => text.push_str(said),
        }
    }

    fn ids(&self, tokenizer: &Tokenizer) -> CommandResult<Vec<u32>> {
        match self {
            Conversation::Messages { template, messages, .. } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                let options = ChatOptions { now: i64::try_from(now).ok(), ..ChatOptions::PROMPT };
                Ok(tokenizer.encode(&template.render(messages, &options)?.text, false)?)
            }
            Conversation::Plain(text) => {
                let mut ids = tokenizer.encode(text, true)?;
                ids.truncate(ids.len() - tokenizer.suffix().len());
                Ok(ids)
            }
        }
    }
}

struct Session<'s> {
    loaded: &'s Loaded,
    tokenizer: Tokenizer,
    settings: Settings,
    interrupts: Interrupts,
    ui: &'s Ui,
    conversation: Conversation,
    tape: Tape,
    /// Keys the randomness.
    turn: u64,
}

/// Whether the conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

impl Session<'_> {
    fn run(&mut self, interactive: bool) -> CommandResult {
        while let Some(line) = self.read_line(interactive)? {
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/reset" => {
                    self.conversation.reset();
                    self.ui.note("a new conversation");
                }
                "/help" => self.ui.note(HELP),
                word if interactive && word.starts_with('/') && !word.contains(char::is_whitespace) => {
                    self.ui.note(&format!("{word} is not a command\n{HELP}"));
                }
                _ => {
                    let before = self.conversation.len();
                    self.conversation.ask(&line);
                    match self.answer() {
                        Ok(Next::Line) => {}
                        Ok(Next::End) => return Ok(()),
                        // A person can go on from here; a script cannot know that it should.
                        Err(error) if interactive && error.kind == Kind::BadInput => {
                            self.ui.error(&error);
                            self.conversation.truncate(before);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        if interactive {
            self.ui.note("");
        }
        Ok(())
    }

    /// A line without its end, or nothing at the end of the input.
    fn read_line(&self, interactive: bool) -> CommandResult<Option<String>> {
        if interactive {
            let _ = write!(io::stderr(), "{}", self.ui.bold(PROMPT));
        }
        let mut line = String::new();
        let read = self.interrupts.while_idle(|| io::stdin().lock().read_line(&mut line));
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(CommandError::bad_input("stdin: found bytes that are not UTF-8, expected text"))
            }
            Err(error) => Err(CommandError::failed(format!("cannot read stdin: {error}"))),
        }
    }

    /// Generates an answer to the conversation as it is, shows it and adds it.
    fn answer(&mut self) -> CommandResult<Next> {
        let ids = self.conversation.ids(&self.tokenizer)?;
        let positions = self.loaded.positions_max();
        if ids.is_empty() || ids.len() >= positions {
            return Err(CommandError::bad_input(format!(
                "the conversation has {} tokens, expected 1 to {}: the model has {positions} positions",
                ids.len(),
                positions - 1
            ))
            .hint("/reset begins a new conversation"));
        }
        let stops = &self.settings.sampler.stop_strings;
        let mut speaker = Speaker::new(self.tokenizer.stream(true), stops, self.ui.json());
        let response = self.generate(ids.clone(), &mut speaker);
        let stopped = self.interrupts.take();
        let Spoken { content, closed } = speaker.finish()?;
        self.conversation.answer(&content);
        if self.ui.json() {
            let answer = Answer {
                role: "assistant",
                content: &content,
                prompt_tokens: ids.len(),
                tokens: response.ids.len(),
                finish_reason: if stopped { "interrupted" } else { response.finish.name() },
            };
            to_stdout(|out| {
                serde_json::to_writer(&mut *out, &answer)?;
                out.write_all(b"\n")
            })?;
        } else if stopped {
            self.ui.note("(stopped)");
        } else if response.finish == Finish::Length {
            self.ui.note(&format!("(cut at {} tokens)", response.ids.len()));
        }
        Ok(if closed { Next::End } else { Next::Line })
    }

    fn generate(&mut self, ids: Vec<u32>, speaker: &mut Speaker) -> Response {
        let Loaded { model, decoder, cpu, .. } = self.loaded;
        let mut engine = Engine::new(cpu, decoder, &model.params, Limits::usual(), &mut self.tape);
        let request = Request { ids, samples: 1, prompt_id: self.turn };
        self.turn += 1;
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, true).unwrap_or_default();
        let interrupts = &self.interrupts;
        let mut on_token = |event: TokenEvent| {
            speaker.token(event.token);
            if interrupts.requested() || speaker.failed() { Flow::Stop } else { Flow::Continue }
        };
        let settings = &self.settings;
        let responses = engine.generate(&[request], &settings.sampler, settings.seed, &decode, &mut on_token);
        responses.into_iter().next().expect("one request of one sample has one response")
    }
}

/// Shows an answer as it comes, but for the end that may turn out to be a stop text.
struct Speaker {
    stream: StreamDecoder,
    stops: Vec<String>,
    silent: bool,
    /// Everything decoded, and how much of it is shown.
    text: String,
    shown: usize,
    decoding: Option<LmError>,
    writing: Option<io::Error>,
}

/// An answer that is over.
struct Spoken {
    content: String,
    /// Whether nobody reads stdout any more.
    closed: bool,
}

impl Speaker {
    fn new(stream: StreamDecoder, stops: &[String], silent: bool) -> Self {
        let (stops, text) = (stops.to_vec(), String::new());
        Self { stream, stops, silent, text, shown: 0, decoding: None, writing: None }
    }

    fn failed(&self) -> bool {
        self.decoding.is_some() || self.writing.is_some()
    }

    fn token(&mut self, id: u32) {
        match self.stream.push(id) {
            Ok(piece) => self.text.push_str(&piece),
            Err(error) => self.decoding = Some(error),
        }
        let certain = certain_len(&self.text, &self.stops);
        self.show(certain);
    }

    /// Shows up to byte `end`.
    fn show(&mut self, end: usize) {
        if self.silent || self.writing.is_some() || end <= self.shown {
            return;
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(&self.text.as_bytes()[self.shown..end]).and_then(|()| out.flush());
        self.shown = end;
        self.writing = written.err();
    }

    fn finish(mut self) -> CommandResult<Spoken> {
        match self.stream.finish() {
            Ok(piece) => self.text.push_str(&piece),
            Err(error) => self.decoding = Some(error),
        }
        if let Some(error) = self.decoding {
            return Err(error.into());
        }
        let content = before_stop(std::mem::take(&mut self.text), &self.stops);
        self.text = format!("{content}\n");
        self.show(self.text.len());
        match self.writing {
            None => Ok(Spoken { content, closed: false }),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Spoken { content, closed: true }),
            Some(error) => Err(stdout_error(error)),
        }
    }
}

/// How much of a text can be shown: up to a stop text, and not an end that could become one.
fn certain_len(text: &str, stops: &[String]) -> usize {
    if let Some(stop) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        return stop;
    }
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    let from = text.floor_char_boundary(text.len().saturating_sub(longest));
    text[from..]
        .char_indices()
        .map(|(at, _)| from + at)
        .find(|&at| stops.iter().any(|stop| stop.starts_with(&text[at..])))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_is_held_back() {
        let check = |text: &str, stops: &[&str], expect: &str| {
            let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
            assert_eq!(&text[..certain_len(text, &stops)], expect);
        };
        check("Hello.\n", &[], "Hello.\n");
        check("Hello.\n", &["\nUser:"], "Hello.");
        check("Hello.\nUse", &["\nUser:"], "Hello.");
        check("Hello.\nUsed", &["\nUser:"], "Hello.\nUsed");
        check("Hello.\nUser: hi", &["\nUser:"], "Hello.");
        check("ab ab", &["abc", "x"], "ab ");
        check("été é", &["éa"], "été ");
    }

    #[test]
    fn a_plain_conversation_is_one_text() {
        let mut conversation = Conversation::new(None, None);
        conversation.ask("Once");
        conversation.answer(" upon");
        conversation.ask("a time");
        assert!(matches!(&conversation, Conversation::Plain(text) if text == "Once upon\na time"));
        let before = conversation.len();
        conversation.ask("again");
        conversation.truncate(before);
        assert!(matches!(&conversation, Conversation::Plain(text) if text == "Once upon\na time"));
        conversation.reset();
        assert!(matches!(&conversation, Conversation::Plain(text) if text.is_empty()));
    }
}
