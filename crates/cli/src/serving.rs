//! Models behind `polity serve`: loading them, what the server asks of the world outside, and channels whose releases change.
//!
//! Not here: the API and decoding (`polity-serve`), releases (`polity-store`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polity_compute::Cpu;
use polity_rows::{Message, Text};
use polity_serve::channel::{Arms, Channel};
use polity_serve::host::{Answering, Feedback, Given, Host, Raised, Said};
use polity_serve::monitor::{ArmName, Policy, Then};
use polity_serve::{Limits, ModelParts, ServedModel, Server};
use polity_store::{
    ChannelState, Content, NOBODY, NewFeedback, Recorded, Release, Rollback, ServedAnswer, Store, StoreError,
};
use polity_train::run::Input;
use serde_json::{Value, json};

use crate::args::Global;
use crate::clock::{now_utc, unix_ms};
use crate::error::{CommandError, CommandResult};
use crate::model::Loaded;
use crate::project;
use crate::project_args::ServeArgs;
use crate::settings::{Read, Settings, Uses};
use crate::ui::Ui;

/// Names the key of a server without a project.
pub const KEY_VARIABLE: &str = "POLITY_API_KEY";
/// How often a channel's releases are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Loads models as the flags say.
#[derive(Clone)]
pub struct Loader {
    global: Global,
    cpu: Arc<Cpu>,
    limits: Limits,
    sets: Vec<(String, String)>,
}

impl Loader {
    /// All models share one processor.
    pub fn new(args: &ServeArgs, global: &Global) -> Loader {
        let limits = Limits {
            sequences_max: args.sequences,
            kv_tokens_max: args.kv_tokens,
            waiting_max: args.waiting,
            ..Limits::usual()
        };
        let cpu = Arc::new(Cpu::new(global.threads()));
        Loader { global: global.clone(), cpu, limits, sets: args.sets.clone() }
    }

    /// Loads one model and starts decoding; also what was odd about it.
    pub fn load(&self, name: &str, dir: &Path) -> CommandResult<(Arc<ServedModel>, Vec<String>)> {
        let mut loaded = Loaded::language_model(dir, "serve", &self.global)?;
        let Read { settings, warnings } = Settings::read(Uses::Chat, dir, &loaded.model, &self.sets)?;
        loaded.multiply_in(settings.precision);
        let hash = Input::hash("model", dir)?.blake3;
        let Loaded { model, decoder, .. } = loaded;
        let parts = ModelParts {
            name: name.to_owned(),
            hash,
            model,
            decoder,
            cpu: self.cpu.clone(),
            usual: settings.sampler,
            limits: self.limits,
        };
        let served = ServedModel::start(parts)
            .map_err(|error| CommandError::bad_input(format!("{}: {error}", dir.display())))?;
        Ok((Arc::new(served), warnings))
    }
}

/// The models that the flags name, each a channel of its own.
pub fn plain_models(
    args: &ServeArgs,
    loader: &Loader,
    policy: &Policy,
    ui: &Ui,
) -> CommandResult<Vec<Channel>> {
    let load = |model: &String| {
        let (name, dir) = match model.split_once('=') {
            Some((name, dir)) => (name.to_owned(), PathBuf::from(dir)),
            None => {
                let dir = PathBuf::from(model);
                let whole = dir.canonicalize().unwrap_or_else(|_| dir.clone());
                let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
                (name.unwrap_or_default(), dir)
            }
        };
        if name.is_empty() {
            return Err(CommandError::bad_input(format!("--model {model}: no name")).hint("write NAME=DIR"));
        }
        let (stable, warnings) = loader.load(&name, &dir)?;
        warnings.iter().for_each(|warning| ui.warn(warning));
        Ok(Channel::new(&name, Arms { stable, canary: None }, policy.clone()))
    };
    args.models.iter().map(load).collect()
}

/// The policy that the flags name, or the usual one.
pub fn policy(args: &ServeArgs) -> CommandResult<Policy> {
    let Some(file) = &args.policy else { return Ok(Policy::usual()) };
    let wrong = |what: String| CommandError::bad_input(format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(format!("cannot read: {error}")))?;
    Policy::read(&text).map_err(wrong)
}

/// Two channels of one name could not be told apart.
pub fn check_names(channels: &[Channel]) -> CommandResult {
    for (at, channel) in channels.iter().enumerate() {
        if channels[..at].iter().any(|earlier| earlier.name() == channel.name()) {
            return Err(CommandError::bad_input(format!("two models are called {}", channel.name()))
                .hint("write --model NAME=DIR"));
        }
    }
    Ok(())
}

/// A project's channel, as it is served.
pub struct Followed {
    loader: Loader,
    store: Store,
    project: PathBuf,
    channel: String,
}

impl Followed {
    /// Follows the releases of one channel.
    pub fn new(loader: &Loader, store: &Store, project: &Path, channel: &str) -> Followed {
        let (loader, store) = (loader.clone(), store.clone());
        Followed { loader, store, project: project.to_owned(), channel: channel.to_owned() }
    }

    /// Loads what is released now.
    pub async fn open(&self, policy: Policy, ui: &Ui) -> CommandResult<Channel> {
        let state = self.store.channel(&self.channel).await?;
        let Some(stable) = &state.stable else {
            return Err(CommandError::bad_input(format!("nothing is released to channel {}", self.channel))
                .hint("polity release MODEL --channel NAME releases; --model DIR serves a model without a release"));
        };
        let load = |release: &Recorded<Release>| {
            let (model, warnings) = self.load(release)?;
            warnings.iter().for_each(|warning| ui.warn(warning));
            CommandResult::Ok(model)
        };
        let canary =
            state.canary.as_ref().map(|canary| Ok::<_, CommandError>((load(canary)?, share(canary))));
        let arms = Arms { stable: load(stable)?, canary: canary.transpose()? };
        Ok(Channel::new(&self.channel, arms, policy))
    }

    fn load(&self, release: &Recorded<Release>) -> CommandResult<(Arc<ServedModel>, Vec<String>)> {
        self.loader.load(&release.what.release, &self.project.join(&release.what.dir))
    }

    /// Looks at the releases from time to time and serves what is new. What cannot be loaded is said, and what was served goes on.
    pub async fn follow(self, server: Server) {
        let mut failed: Option<String> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let outcome = self.look(&server).await;
            let error =
                outcome.err().map(|error| format!("channel {} goes on as it was: {error}", self.channel));
            if let Some(error) = error.as_ref().filter(|error| Some(*error) != failed.as_ref()) {
                log(error);
            }
            failed = error;
        }
    }

    async fn look(&self, server: &Server) -> CommandResult {
        let state = self.store.channel(&self.channel).await?;
        let Some(channel) = server.channels().iter().find(|channel| channel.name() == self.channel) else {
            return Ok(());
        };
        let now = channel.arms();
        let names = |state: &ChannelState| {
            let name = |release: &Recorded<Release>| release.what.release.clone();
            (
                state.stable.as_ref().map(name),
                state.canary.as_ref().map(|canary| (name(canary), share(canary))),
            )
        };
        let served = (
            Some(now.stable.name().to_owned()),
            now.canary.as_ref().map(|(model, share)| (model.name().to_owned(), *share)),
        );
        let (Some(stable), true) = (&state.stable, names(&state) != served) else { return Ok(()) };
        // Loading takes a while, and the server goes on meanwhile.
        let load = |release: &Recorded<Release>| {
            let known =
                [Some(&now.stable), now.canary.as_ref().map(|(model, _)| model)].into_iter().flatten();
            match known.into_iter().find(|model| model.name() == release.what.release) {
                Some(model) => Ok(model.clone()),
                None => tokio::task::block_in_place(|| self.load(release)).map(|(model, _)| model),
            }
        };
        let canary =
            state.canary.as_ref().map(|canary| Ok::<_, CommandError>((load(canary)?, share(canary))));
        let arms = Arms { stable: load(stable)?, canary: canary.transpose()? };
        let served = arms
            .canary
            .as_ref()
            .map_or(String::new(), |(model, share)| format!(", {} to {share}", model.name()));
        log(&format!("channel {} serves {}{served}", self.channel, arms.stable.name()));
        channel.serve(arms);
        Ok(())
    }
}

fn share(release: &Recorded<Release>) -> f64 {
    release.what.canary_share.unwrap_or(0.0)
}

/// A line with the time.
pub fn log(line: &str) {
    use std::io::Write;
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "{} {line}", now_utc());
}

/// Who may, and where feedback goes.
pub enum Keys {
    /// Accounts of a project.
    Project(Store),
    /// Whoever has the key.
    Key(String),
    /// Everybody on this machine.
    Open,
}

/// The world outside the server.
pub struct World {
    keys: Keys,
    seed: [u8; 32],
    drawn: std::sync::atomic::AtomicU64,
}

impl World {
    /// With randomness from the system.
    pub fn new(keys: Keys) -> CommandResult<World> {
        Ok(World { keys, seed: project::seed()?, drawn: Default::default() })
    }
}

impl Host for World {
    fn now_ms(&self) -> i64 {
        unix_ms()
    }

    fn random(&self) -> u64 {
        let n = self.drawn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let hash = blake3::keyed_hash(&self.seed, &n.to_le_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
    }

    fn log(&self, line: &str) {
        log(line);
    }

    fn caller(&self, key: Option<&str>) -> Answering<Option<String>> {
        let known = match &self.keys {
            Keys::Open => Some("anyone".to_owned()),
            // Comparing hashes takes the same time wherever two keys differ.
            Keys::Key(good) => {
                let is = key.is_some_and(|key| blake3::hash(key.as_bytes()) == blake3::hash(good.as_bytes()));
                is.then(|| "key".to_owned())
            }
            Keys::Project(store) => {
                let (store, key) = (store.clone(), key.map(str::to_owned));
                return Box::pin(async move {
                    let Some(key) = key else { return Ok(None) };
                    match store.token_account(&key, unix_ms()).await {
                        Ok(account) => Ok(Some(account.id)),
                        Err(StoreError::Credential { .. }) => Ok(None),
                        Err(error) => Err(error.to_string()),
                    }
                });
            }
        };
        Box::pin(async { Ok(known) })
    }

    fn refuses(&self, text: &str) -> bool {
        polity_eval::refusal::string_match(text)
    }

    fn keeps_feedback(&self) -> bool {
        matches!(self.keys, Keys::Project(_))
    }

    fn keep(&self, feedback: Feedback) -> Answering<()> {
        let Keys::Project(store) = &self.keys else {
            return Box::pin(async {
                Err("feedback is kept in a project's store, and there is none".to_owned())
            });
        };
        let store = store.clone();
        Box::pin(async move {
            let Feedback { channel, caller, at_ms, reason, said } = feedback;
            let (first, second, value) = match said {
                Said::Thumb { of, up } => (*of, None, if up { 1.0 } else { 0.0 }),
                Said::Preference { first, second, first_is_better } => {
                    (*first, Some(*second), first_is_better)
                }
            };
            let is_chat = first.prompt.is_array();
            let prompt = content(&first.prompt)?;
            let answer = |given: Given| ServedAnswer {
                completion: format!("{}/{}", given.completion, given.choice),
                arm: given.arm.name().to_owned(),
                release: given.release,
                model_hash: given.model,
                content: match is_chat {
                    true => Content::Text(Text::Messages(vec![Message::new("assistant", given.text)])),
                    false => Content::plain(given.text),
                },
            };
            let other = second.map(answer);
            let new = NewFeedback { channel, caller, prompt, answer: answer(first), other, value, reason };
            store.add_feedback(new, at_ms).await.map(|_| ()).map_err(|error| error.to_string())
        })
    }

    fn alarm(&self, raised: Raised) -> Answering<()> {
        log(&said(&raised));
        let Keys::Project(store) = &self.keys else { return Box::pin(async { Ok(()) }) };
        let store = store.clone();
        Box::pin(async move {
            let now_ms = unix_ms();
            let body = json!(raised);
            let told =
                store.append_event("alarm", NOBODY, body, now_ms).await.map_err(|error| error.to_string());
            let criterion = &raised.alarm.criterion;
            if criterion.then == Then::Rollback && criterion.arm == ArmName::Canary {
                take_back(&store, &raised, now_ms).await.map_err(|error| error.to_string())?;
            }
            told.map(|_| ())
        })
    }
}

/// Records that a canary was taken back, if it is still the channel's.
async fn take_back(store: &Store, raised: &Raised, now_ms: i64) -> polity_store::Result<()> {
    let state = store.channel(&raised.channel).await?;
    let (Some(stable), Some(canary)) = (state.stable, state.canary) else { return Ok(()) };
    if canary.what.release != raised.release {
        return Ok(());
    }
    let rollback = Rollback {
        channel: raised.channel.clone(),
        from: raised.release.clone(),
        to: stable.what.release,
        skipped: Vec::new(),
    };
    store.add_rollback(rollback, NOBODY, now_ms).await.map(|_| ())
}

fn said(raised: &Raised) -> String {
    let Raised { channel, release, alarm } = raised;
    let (criterion, found) = (&alarm.criterion, &alarm.found);
    let what = if criterion.then == Then::Rollback { "rolled back" } else { "alarm" };
    format!(
        "channel {channel}, {release}: {what}: {} is worse than its limit of {:.3}: mean {:.3} of {}, p = {:.2e} at any time, alpha = {}",
        criterion.measure.name(),
        found.null,
        found.mean,
        found.n,
        found.p_anytime,
        criterion.alpha
    )
}

/// A prompt as the store keeps it: role and content of each message, or a text.
fn content(prompt: &Value) -> Result<Content, String> {
    let Some(messages) = prompt.as_array() else {
        return Ok(Content::plain(prompt.as_str().unwrap_or_default()));
    };
    let message = |message: &Value| {
        let text = |key: &str| message[key].as_str().map(str::to_owned);
        Some(Message::new(text("role")?, text("content")?))
    };
    let messages: Option<Vec<Message>> = messages.iter().map(message).collect();
    let messages = messages.ok_or("a message without role and content")?;
    Ok(Content::Text(Text::Messages(messages)))
}
