//! Settings of a run: declared once, read from TOML and `--set`, checked, and written back in full.
//!
//! A stage's settings are a plain struct declared with `settings!`: each key has its documentation, type, default and
//! domain in one place, and help, the reference in `docs/settings.md`, parsing, checking and `resolved.toml` all come
//! from there. The structs are in [`crate::settings`].
//!
//! ```text
//! defaults  <-  the stage's preset, if it has any  <-  file, in order  <-  --set, in order      then resolve, then check
//! ```
//!
//! Rules: an unknown key is an error; so is a value outside its domain, or one that would be silently ignored; `"none"`
//! is the absence of an optional value, since TOML has no null; a number written as an integer may stand for a float,
//! not the other way round.
//!
//! Not here: which settings there are; the environment, files and arguments (the command line reads them).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use toml::Value;
use toml::de::DeTable;

use crate::error::{Origin, TrainError};
use crate::metrics::Stage;
use crate::objectives::ObjectiveError;

// --------------------------------------------------------------------------------------------------- public surface

/// A stage's settings. Made by [`Config::from_toml_and_sets`] only, so that whatever exists has been checked.
pub trait Config: Table + Clone {
    /// Which trainer they are for.
    const STAGE: Stage;

    /// Settings with this one's preset and nothing else set. A stage without presets has its defaults only.
    fn only_preset(&self) -> Self {
        Self::initial()
    }

    /// Fills in what one setting implies about another.
    fn resolve(&mut self) {}

    /// What goes with what. The domain of each single key has been checked before.
    fn check(&self) -> Result<(), Objection>;

    /// What is allowed but probably not meant, one sentence each, for the pre-flight report.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Every key, in order.
    fn keys() -> Vec<KeyInfo> {
        Self::initial().entries().into_iter().map(|entry| entry.info).collect()
    }

    /// Settings from an optional file (its name, for messages, and its text) and `--set key=value` pairs; later wins.
    fn from_toml_and_sets(
        file: Option<(&Path, &str)>,
        sets: &[(String, String)],
    ) -> Result<Self, TrainError> {
        let mut given = match file {
            Some((file, text)) => parse_file(file, text)?,
            None => Vec::new(),
        };
        for (key, text) in sets {
            given.push(Given { key: key.clone(), value: parse_set(key, text)?, origin: Origin::Set });
        }

        let mut config = Self::initial();
        // Two passes: a preset changes defaults, so it must not undo a key that stands before it.
        given
            .iter()
            .filter(|given| given.key == PRESET_KEY)
            .try_for_each(|given| assign(&mut config, given))?;
        config = config.only_preset();
        given.iter().try_for_each(|given| assign(&mut config, given))?;
        config.resolve();

        let origins: BTreeMap<&str, &Origin> =
            given.iter().map(|given| (given.key.as_str(), &given.origin)).collect();
        config.check_all().map_err(|objection| objection.at(&origins))?;
        Ok(config)
    }

    /// Checks every domain and what goes with what: for settings changed in code after they were read.
    fn validate(&self) -> Result<(), TrainError> {
        self.check_all().map_err(|objection| objection.at(&BTreeMap::new()))
    }

    /// Every key with its value, and what it means, as a TOML file that reads back to the same settings.
    fn to_toml(&self) -> String {
        let mut out = format!("# All settings of `polity train {}`, as this run used them.\n", Self::STAGE);
        for Entry { info, value } in self.entries() {
            out.push('\n');
            for line in wrap(&info.doc, DOC_COLUMNS) {
                let _ = writeln!(out, "# {line}");
            }
            let _ = writeln!(out, "# [{}; default {}]", info.domain(), info.default);
            let _ = writeln!(out, "{} = {value}", info.name);
        }
        out
    }

    /// Every key with its value and its default (or its preset's), as TOML: for reports.
    fn values(&self) -> Vec<SettingValue> {
        let unset = self.only_preset().entries();
        let pairs = self.entries().into_iter().zip(unset);
        pairs
            .map(|(now, unset)| SettingValue { key: now.info.name, value: now.value, default: unset.value })
            .collect()
    }

    /// The same without comments: what two runs must share to be the same run.
    fn to_canonical_toml(&self) -> String {
        self.entries().iter().map(|entry| format!("{} = {}\n", entry.info.name, entry.value)).collect()
    }

    /// An objection if `key` does not have its default value and `needed` does not hold.
    fn idle_unless(&self, needed: bool, key: &'static str, reason: &str) -> Result<(), Objection> {
        let value_in = |config: &Self| {
            let entries = config.entries();
            entries.into_iter().find(|entry| entry.info.name == key).expect("a key of this table").value
        };
        // A preset's value was not asked for by name, so it may do nothing.
        let (value, unset) = (value_in(self), value_in(&self.only_preset()));
        if needed || value == unset {
            return Ok(());
        }
        Err(Objection::Value {
            key: key.into(),
            found: value,
            expected: format!("its default, {unset}"),
            reason: format!("it would have no effect: {reason}"),
        })
    }

    /// Domains, then combinations.
    #[doc(hidden)]
    fn check_all(&self) -> Result<(), Objection> {
        self.check_domains()?;
        self.check()
    }
}

/// What is known about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// As written in TOML and after `--set`.
    pub name: &'static str,
    /// Its type, as words.
    pub type_name: String,
    /// The domain of its numbers, if it is narrower than the type.
    pub expected: Option<&'static str>,
    /// The default, as TOML.
    pub default: String,
    /// One or more sentences.
    pub doc: String,
}

impl KeyInfo {
    /// Type and domain, as words.
    pub fn domain(&self) -> String {
        match self.expected {
            Some(expected) => format!("{}, {expected}", self.type_name),
            None => self.type_name.clone(),
        }
    }
}

/// What a key was set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingValue {
    /// The key.
    pub key: &'static str,
    /// Its value, as TOML.
    pub value: String,
    /// What it would be if it had not been set.
    pub default: String,
}

/// Why settings are refused, before it is known where they came from.
#[derive(Clone, Debug, PartialEq)]
pub enum Objection {
    /// One value.
    Value {
        /// Key.
        key: String,
        /// Value given, as TOML.
        found: String,
        /// What is allowed.
        expected: String,
        /// Why.
        reason: String,
    },
    /// Two values.
    Clash {
        /// Key of the first.
        key: String,
        /// The first, as words.
        setting: String,
        /// The second, as words.
        with: String,
        /// Why.
        reason: String,
    },
}

impl Objection {
    /// A value refused.
    pub(crate) fn value(key: &str, found: impl Setting, expected: &str, reason: &str) -> Objection {
        Objection::Value {
            key: key.into(),
            found: found.show(),
            expected: expected.into(),
            reason: reason.into(),
        }
    }

    /// Two settings that contradict each other; the first one's key is `key`.
    pub(crate) fn clash(
        key: &str,
        setting: impl Into<String>,
        with: impl Into<String>,
        reason: &str,
    ) -> Objection {
        Objection::Clash {
            key: key.into(),
            setting: setting.into(),
            with: with.into(),
            reason: reason.into(),
        }
    }

    fn at(self, origins: &BTreeMap<&str, &Origin>) -> TrainError {
        let origin = |key: &str| Box::new(origins.get(key).map_or(Origin::Unset, |origin| (*origin).clone()));
        match self {
            Objection::Value { key, found, expected, reason } => {
                TrainError::Setting { origin: origin(&key), key, found, expected, reason }
            }
            Objection::Clash { key, setting, with, reason } => {
                TrainError::Incompatible { origin: origin(&key), setting, with, reason }
            }
        }
    }
}

impl From<ObjectiveError> for Objection {
    /// An objective's refusal of its configuration; its field names are the keys, but for the few that `key_of` maps.
    fn from(error: ObjectiveError) -> Objection {
        let key_of = |field: &str| match field {
            "cliprange_low" => "cliprange".to_owned(),
            _ => field.split(' ').next().unwrap_or(field).to_owned(),
        };
        match error {
            ObjectiveError::InvalidValue { field, found, expected, reason } => Objection::Value {
                key: key_of(field),
                found: found.show(),
                expected: expected.into(),
                reason: reason.into(),
            },
            ObjectiveError::LengthMismatch { field, found, expected, of } => Objection::Value {
                key: key_of(field),
                found: format!("a list of {found}"),
                expected: format!("a list of {expected}, one for each {of}"),
                reason: String::new(),
            },
            ObjectiveError::Incompatible { setting, with, reason } => {
                Objection::clash(&key_of(&setting), setting, with, reason)
            }
            ObjectiveError::UnknownName { field, found, known, .. } => Objection::Value {
                key: key_of(field),
                found: found.show(),
                expected: format!("one of {known}"),
                reason: String::new(),
            },
            ObjectiveError::TooFewToWhiten { what, found, needed } => Objection::Value {
                key: format!("values of {what} in a batch"),
                found: found.to_string(),
                expected: format!("at least {needed}"),
                reason: "whitening needs a variance".into(),
            },
        }
    }
}

// --------------------------------------------------------------------------------------------------- types of values

/// A type that a setting can have.
pub trait Setting: Clone {
    /// As words, for help and messages: "number", "list of integers".
    fn type_name() -> String;

    /// From TOML. The error is what was expected, as words.
    fn read(value: &Value) -> Result<Self, String>;

    /// As TOML.
    fn show(&self) -> String;

    /// Every number in it, for the domain check.
    fn numbers(&self) -> Vec<f64> {
        Vec::new()
    }
}

impl Setting for f64 {
    fn type_name() -> String {
        "number".into()
    }

    fn read(value: &Value) -> Result<f64, String> {
        match value {
            Value::Float(x) if x.is_finite() => Ok(*x),
            Value::Integer(x) => Ok(*x as f64),
            Value::Float(_) => Err("a finite number".into()),
            _ => Err("a number".into()),
        }
    }

    fn show(&self) -> String {
        // As `{}`, but a float stays one: 1.0, 2e-5.
        format!("{self:?}")
    }

    fn numbers(&self) -> Vec<f64> {
        vec![*self]
    }
}

macro_rules! integer_setting {
    ($($int:ty),*) => {$(
        impl Setting for $int {
            fn type_name() -> String {
                "integer".into()
            }

            fn read(value: &Value) -> Result<$int, String> {
                let expected = || {
                    // TOML integers are i64, so the upper end never binds for the 64-bit types.
                    if <$int>::MIN == 0 { "an integer, 0 or more".to_owned() } else { "an integer".to_owned() }
                };
                value.as_integer().and_then(|x| <$int>::try_from(x).ok()).ok_or_else(expected)
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn numbers(&self) -> Vec<f64> {
                vec![*self as f64]
            }
        }
    )*};
}
integer_setting!(i64, u64, u32, usize);

impl Setting for bool {
    fn type_name() -> String {
        "true or false".into()
    }

    fn read(value: &Value) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| "true or false".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for String {
    fn type_name() -> String {
        "text".into()
    }

    fn read(value: &Value) -> Result<String, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| "text".into())
    }

    fn show(&self) -> String {
        Value::String(self.clone()).to_string()
    }
}

/// The absence of an optional value.
const NONE: &str = "none";

impl<T: Setting> Setting for Option<T> {
    fn type_name() -> String {
        format!("{} or {NONE:?}", T::type_name())
    }

    fn read(value: &Value) -> Result<Option<T>, String> {
        if value.as_str() == Some(NONE) {
            return Ok(None);
        }
        T::read(value).map(Some).map_err(|expected| format!("{expected} or {NONE:?}"))
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| format!("{NONE:?}"), T::show)
    }

    fn numbers(&self) -> Vec<f64> {
        self.as_ref().map_or_else(Vec::new, T::numbers)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn type_name() -> String {
        format!("list of {}", T::type_name())
    }

    /// A single value is a list of one, and after `--set` a text with commas is a list of its parts.
    fn read(value: &Value) -> Result<Vec<T>, String> {
        match value {
            Value::Array(values) => values.iter().map(T::read).collect(),
            Value::String(text) if text.contains(',') => {
                text.split(',').map(|part| T::read(&parse_word(part.trim()))).collect()
            }
            single => T::read(single).map(|item| vec![item]),
        }
        .map_err(|expected| format!("a list, each {expected}"))
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }

    fn numbers(&self) -> Vec<f64> {
        self.iter().flat_map(T::numbers).collect()
    }
}

/// A choice among names.
pub trait Named: Copy + PartialEq + 'static {
    /// Every choice with its name.
    const NAMES: &'static [(&'static str, Self)];
}

/// A choice among names, as a setting. Holds the choice; the name is looked up.
macro_rules! named_setting {
    ($type:ty) => {
        impl $crate::config::Setting for $type {
            fn type_name() -> String {
                $crate::config::names::<$type>()
            }

            fn read(value: &toml::Value) -> Result<$type, String> {
                $crate::config::read_name::<$type>(value)
            }

            fn show(&self) -> String {
                format!("{:?}", $crate::config::name_of(*self))
            }
        }
    };
}
pub(crate) use named_setting;

/// Declares an enum whose variants are choices of a setting.
macro_rules! choices {
    ($(#[$meta:meta])* pub enum $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $crate::config::Named for $type {
            const NAMES: &'static [(&'static str, $type)] = &[$(($name, $type::$variant),)+];
        }

        $crate::config::named_setting!($type);
    };
}
pub(crate) use choices;

/// All names of a choice, as words.
pub(crate) fn names<T: Named>() -> String {
    T::NAMES.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(" | ")
}

/// A choice by its name.
pub(crate) fn read_name<T: Named>(value: &Value) -> Result<T, String> {
    let expected = || format!("one of {}", names::<T>());
    let found = value.as_str().ok_or_else(expected)?;
    if let Some((_, choice)) = T::NAMES.iter().find(|(name, _)| *name == found) {
        return Ok(*choice);
    }
    let known = T::NAMES.iter().map(|(name, _)| *name);
    Err(match nearest(found, known) {
        Some(name) => format!("{} (did you mean {name:?}?)", expected()),
        None => expected(),
    })
}

/// The name of a choice.
pub(crate) fn name_of<T: Named>(choice: T) -> &'static str {
    let (name, _) = T::NAMES.iter().find(|(_, known)| *known == choice).expect("every choice has a name");
    name
}

/// A choice whose names belong to an objective: what was written, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<T> {
    /// The name, as it was written.
    pub name: String,
    /// What it means.
    pub value: T,
}

impl<T: FromStr<Err = ObjectiveError>> Choice<T> {
    /// A default.
    ///
    /// # Panics
    ///
    /// If the objective does not know the name.
    pub(crate) fn of(name: &str) -> Choice<T> {
        let value =
            name.parse().unwrap_or_else(|error: ObjectiveError| panic!("a default of a setting: {error}"));
        Choice { name: name.into(), value }
    }
}

impl<T: Clone + FromStr<Err = ObjectiveError>> Setting for Choice<T> {
    /// The objective's own list of names, as it gives it with the refusal of a name that nothing has.
    fn type_name() -> String {
        match "".parse::<T>() {
            Err(ObjectiveError::UnknownName { known, .. }) => {
                known.split(", ").map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" | ")
            }
            _ => "text".into(),
        }
    }

    fn read(value: &Value) -> Result<Choice<T>, String> {
        let expected = || format!("one of {}", Self::type_name());
        let name = value.as_str().ok_or_else(expected)?;
        match name.parse() {
            Ok(value) => Ok(Choice { name: name.into(), value }),
            Err(ObjectiveError::UnknownName { nearest: Some(nearest), .. }) => {
                Err(format!("{} (did you mean {nearest:?}?)", expected()))
            }
            Err(_) => Err(expected()),
        }
    }

    fn show(&self) -> String {
        format!("{:?}", self.name)
    }
}

// --------------------------------------------------------------------------------------------------- declaring keys

/// What the numbers of a key may be.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// Whether a number is in it.
    pub holds: fn(f64) -> bool,
    /// As words.
    pub expected: &'static str,
}

/// `> 0`.
pub(crate) const POSITIVE: Domain = Domain { holds: |x| x > 0.0, expected: "> 0" };
/// `>= 0`.
pub(crate) const NOT_NEGATIVE: Domain = Domain { holds: |x| x >= 0.0, expected: ">= 0" };
/// `[0, 1]`.
pub(crate) const UNIT: Domain = Domain { holds: |x| (0.0..=1.0).contains(&x), expected: "in [0, 1]" };
/// `[0, 1)`.
pub(crate) const BELOW_ONE: Domain = Domain { holds: |x| (0.0..1.0).contains(&x), expected: "in [0, 1)" };

/// A key with its value.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Entry {
    /// What is known about the key.
    pub info: KeyInfo,
    /// Its present value, as TOML.
    pub value: String,
}

/// What `settings!` generates: access to the keys of a struct by name.
#[doc(hidden)]
pub trait Table: Sized {
    /// The value of every key when nothing is set.
    fn initial() -> Self;

    /// Every key with its value, in order of declaration.
    fn entries(&self) -> Vec<Entry>;

    /// Assigns a key. `None`: there is no such key. The error is what was expected.
    fn assign(&mut self, key: &str, value: &Value) -> Option<Result<(), String>>;

    /// Checks the domain of every key.
    fn check_domains(&self) -> Result<(), Objection>;
}

/// Declares a struct of settings. A field is `key: type = default;`, and after the default optionally
/// `, DOMAIN, "why"`. `common: CommonConfig = expr;` in the first place flattens the common keys into the table,
/// with the defaults that `expr` has.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(flatten $base:ident: $base_type:ty = $base_defaults:expr;)?
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr $(, $domain:expr, $why:literal)?;
            )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $(
                /// What every stage has.
                pub $base: $base_type,
            )?
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl $crate::config::Table for $name {
            fn initial() -> $name {
                $name { $($base: $base_defaults,)? $($field: $default,)+ }
            }

            fn entries(&self) -> Vec<$crate::config::Entry> {
                use $crate::config::{Entry, KeyInfo, Setting};
                let defaults = <$name as $crate::config::Table>::initial();
                let mut entries = Vec::new();
                $(
                    // The common table knows its own defaults; this stage's are what it would be made with.
                    let changed = $crate::config::Table::entries(&defaults.$base);
                    for (mut entry, default) in $crate::config::Table::entries(&self.$base).into_iter().zip(changed) {
                        entry.info.default = default.value;
                        entries.push(entry);
                    }
                )?
                $(
                    let info = KeyInfo {
                        name: stringify!($field),
                        type_name: <$type as Setting>::type_name(),
                        expected: {
                            #[allow(unused_mut, unused_assignments)]
                            let mut expected = None;
                            $(expected = Some($domain.expected);)?
                            expected
                        },
                        default: Setting::show(&defaults.$field),
                        doc: [$($doc),+].map(str::trim).join(" "),
                    };
                    entries.push(Entry { info, value: Setting::show(&self.$field) });
                )+
                entries
            }

            fn assign(&mut self, key: &str, value: &toml::Value) -> Option<Result<(), String>> {
                $(
                    if key == stringify!($field) {
                        let read = <$type as $crate::config::Setting>::read(value);
                        return Some(read.map(|value| self.$field = value));
                    }
                )+
                $(
                    if let Some(done) = $crate::config::Table::assign(&mut self.$base, key, value) {
                        return Some(done);
                    }
                )?
                None
            }

            fn check_domains(&self) -> Result<(), $crate::config::Objection> {
                $($crate::config::Table::check_domains(&self.$base)?;)?
                $($(
                    $crate::config::check_domain(stringify!($field), &self.$field, $domain, $why)?;
                )?)+
                Ok(())
            }
        }
    };
}
pub(crate) use settings;

/// An objection if a number is outside the domain of its key.
pub(crate) fn check_domain(
    key: &'static str,
    value: &impl Setting,
    domain: Domain,
    why: &'static str,
) -> Result<(), Objection> {
    if value.numbers().into_iter().all(|x| x.is_finite() && (domain.holds)(x)) {
        return Ok(());
    }
    Err(Objection::Value {
        key: key.into(),
        found: value.show(),
        expected: domain.expected.into(),
        reason: why.into(),
    })
}

// ---------------------------------------------------------------------------------------------------------- parsing

/// The key that is read before all others, where a stage has it.
const PRESET_KEY: &str = "preset";

/// Columns of a comment in `resolved.toml`.
const DOC_COLUMNS: usize = 100;

/// A key that was set, and where.
struct Given {
    key: String,
    value: Value,
    origin: Origin,
}

fn assign<C: Config>(config: &mut C, given: &Given) -> Result<(), TrainError> {
    let (key, origin) = (&given.key, &given.origin);
    match config.assign(key, &given.value) {
        Some(Ok(())) => Ok(()),
        Some(Err(expected)) => Err(TrainError::Setting {
            origin: Box::new(origin.clone()),
            key: key.clone(),
            found: show_found(&given.value),
            expected,
            reason: String::new(),
        }),
        None => Err(TrainError::UnknownKey {
            origin: Box::new(origin.clone()),
            key: key.clone(),
            stage: C::STAGE.name(),
            advice: crate::settings::advice_for_unknown::<C>(key),
        }),
    }
}

/// Every key of a file, in the order of its lines. (The `toml` crate refuses a key that is given twice.)
fn parse_file(file: &Path, text: &str) -> Result<Vec<Given>, TrainError> {
    let parsed = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let (line, column) = line_and_column(text, at);
        TrainError::Toml { file: file.to_owned(), line, column, message: error.message().into() }
    })?;
    let mut given = Vec::new();
    for (key, value) in parsed.into_inner() {
        let at = key.span().start;
        let origin = Origin::File { file: file.to_owned(), line: line_and_column(text, at).0 };
        let key = key.into_inner().into_owned();
        let value: Value = serde::Deserialize::deserialize(toml::de::ValueDeserializer::from(value))
            .map_err(|error: toml::de::Error| TrainError::Setting {
                origin: Box::new(origin.clone()),
                key: key.clone(),
                found: "a value that TOML cannot hold".into(),
                expected: "a TOML value".into(),
                reason: error.message().into(),
            })?;
        if value.is_table() {
            return Err(TrainError::Setting {
                origin: Box::new(origin),
                key,
                found: "a table".into(),
                expected: "a value".into(),
                reason: "settings are flat: write them without table headers and without dots".into(),
            });
        }
        given.push((at, Given { key, value, origin }));
    }
    given.sort_by_key(|(at, _)| *at);
    Ok(given.into_iter().map(|(_, given)| given).collect())
}

/// The right side of `--set key=value`: TOML, or a bare word.
fn parse_set(key: &str, text: &str) -> Result<Value, TrainError> {
    let text = text.trim();
    if text.starts_with(['[', '{', '"', '\'']) {
        return parse_value(text).map_err(|message| TrainError::Setting {
            origin: Box::new(Origin::Set),
            key: key.to_owned(),
            found: text.to_owned(),
            expected: "a TOML value".into(),
            reason: format!(
                "{message}; words inside a list need quotes, or leave out the brackets: {key}=a,b"
            ),
        });
    }
    Ok(parse_word(text))
}

fn parse_word(text: &str) -> Value {
    parse_value(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn parse_value(text: &str) -> Result<Value, String> {
    toml::de::ValueDeserializer::parse(text)
        .and_then(<Value as serde::Deserialize>::deserialize)
        .map_err(|error| error.message().lines().next().unwrap_or_default().to_owned())
}

/// A value in a message: as TOML, cut if it is long.
fn show_found(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let shown = value.to_string();
    if shown.chars().count() <= CHARS_MAX {
        return shown;
    }
    shown.chars().take(CHARS_MAX).chain("…".chars()).collect()
}

/// Both counted from 1.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The known word closest in spelling, if one is close: a third of its letters may differ.
pub fn nearest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|word| (strsim::osa_distance(found, word), word))
        .filter(|(distance, word)| distance * 3 <= word.chars().count().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Lines of at most `columns` characters, broken at spaces.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
