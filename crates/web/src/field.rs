//! Fields of forms and of JSON bodies: declared once, checked once, described from the declaration.

use serde_json::{Map, Value, json};

/// Longest text of a field, in bytes, unless it is [`Kind::Long`].
const TEXT_BYTES_MAX: usize = 2000;
/// Longest list.
const LIST_MAX: usize = 1000;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line of text.
    Text,
    /// Text of any length.
    Long,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A whole number.
    Int,
    /// A number.
    Number,
    /// Yes or no; in a form, a box that is ticked or absent.
    Yes,
    /// Texts.
    List,
    /// Texts by key; in a form, fields named `field.key`.
    Map,
    /// A JSON object that the API's document describes in words.
    Object,
    /// A JSON list of objects; in answers only.
    Objects,
}

/// A field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it must be there.
    pub required: bool,
    /// What it means.
    pub about: &'static str,
}

/// A field that must be there.
pub(crate) const fn needed(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: true, about }
}

/// A field that may be left out.
pub(crate) const fn may(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: false, about }
}

impl Field {
    /// Its JSON schema.
    pub fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Text => json!({"type": "string", "maxLength": TEXT_BYTES_MAX}),
            Kind::Long => json!({"type": "string"}),
            Kind::OneOf(names) => json!({"type": "string", "enum": names}),
            Kind::Int => json!({"type": "integer", "format": "int64"}),
            Kind::Number => json!({"type": "number"}),
            Kind::Yes => json!({"type": "boolean"}),
            Kind::List => json!({"type": "array", "items": {"type": "string"}, "maxItems": LIST_MAX}),
            Kind::Map => json!({"type": "object", "additionalProperties": {"type": "string"}}),
            Kind::Object => json!({"type": "object"}),
            Kind::Objects => json!({"type": "array", "items": {"type": "object"}}),
        };
        schema["description"] = json!(self.about);
        schema
    }
}

/// What came with a request.
pub(crate) enum Sent {
    Form(Vec<(String, String)>),
    Json(Map<String, Value>),
}

impl Sent {
    pub(crate) fn form(bytes: &[u8]) -> Sent {
        Sent::Form(form_urlencoded::parse(bytes).into_owned().collect())
    }

    pub(crate) fn json(object: Map<String, Value>) -> Sent {
        Sent::Json(object)
    }

    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        match self {
            Sent::Form(pairs) => pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()),
            Sent::Json(object) => object.get(name).and_then(Value::as_str),
        }
    }
}

/// Checks what was sent against the declaration; the error names field, found and expected. `strict` refuses unknown names.
pub(crate) fn check(fields: &[Field], sent: Sent, strict: bool) -> Result<Map<String, Value>, String> {
    let mut object = match sent {
        Sent::Json(object) => object,
        Sent::Form(pairs) => from_form(fields, pairs, strict)?,
    };
    object.retain(|_, value| !value.is_null());
    for field in fields {
        match object.get(field.name) {
            None if field.required => return Err(format!("`{}` is missing: {}", field.name, field.about)),
            None => {}
            Some(value) => check_value(field, value)?,
        }
    }
    if strict && let Some(name) = object.keys().find(|name| fields.iter().all(|field| field.name != *name)) {
        let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let expected = if names.is_empty() { "no fields".to_owned() } else { names.join(", ") };
        return Err(format!("`{}` is unknown here; expected {expected}", name.escape_debug()));
    }
    Ok(object)
}

fn from_form(
    fields: &[Field],
    pairs: Vec<(String, String)>,
    strict: bool,
) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, value) in pairs {
        let (key, of) = match name.split_once('.') {
            Some((key, of)) => (key.to_owned(), Some(of.to_owned())),
            None => (name.clone(), None),
        };
        let Some(field) = fields.iter().find(|field| field.name == key) else {
            if strict {
                object.insert(name, Value::String(value));
            }
            continue;
        };
        // Browsers end a textarea's lines with CR LF.
        let value = value.replace("\r\n", "\n");
        match (field.kind, of) {
            (Kind::Map, Some(of)) => {
                let map = object.entry(key).or_insert_with(|| json!({}));
                map[of] = Value::String(value);
            }
            (Kind::List, _) => {
                let list = object.entry(key).or_insert_with(|| json!([]));
                list.as_array_mut().expect("made as a list").push(Value::String(value));
            }
            (Kind::Yes, _) => {
                object.insert(key, Value::Bool(!matches!(value.as_str(), "" | "false" | "0")));
            }
            (Kind::Int | Kind::Number | Kind::OneOf(_), _) if value.trim().is_empty() => {}
            (Kind::Int, _) => {
                let number: i64 = value
                    .trim()
                    .parse()
                    .map_err(|_| format!("`{key}` is `{}`; expected a whole number", shown(&value)))?;
                object.insert(key, json!(number));
            }
            (Kind::Number, _) => {
                let number: f64 = value
                    .trim()
                    .parse()
                    .map_err(|_| format!("`{key}` is `{}`; expected a number", shown(&value)))?;
                object.insert(key, json!(number));
            }
            _ => {
                object.insert(key, Value::String(value));
            }
        }
    }
    Ok(object)
}

fn check_value(field: &Field, value: &Value) -> Result<(), String> {
    let name = field.name;
    let texts = |map: &Map<String, Value>| map.values().all(Value::is_string);
    let fits = match field.kind {
        Kind::Text => value.as_str().is_some_and(|text| text.len() <= TEXT_BYTES_MAX),
        Kind::Long => value.is_string(),
        Kind::OneOf(names) => value.as_str().is_some_and(|text| names.contains(&text)),
        Kind::Int => value.is_i64(),
        Kind::Number => value.as_f64().is_some_and(f64::is_finite),
        Kind::Yes => value.is_boolean(),
        Kind::List => {
            value.as_array().is_some_and(|list| list.len() <= LIST_MAX && list.iter().all(Value::is_string))
        }
        Kind::Map => value.as_object().is_some_and(texts),
        Kind::Object => value.is_object(),
        Kind::Objects => value.is_array(),
    };
    if fits {
        return Ok(());
    }
    let expected = match field.kind {
        Kind::Text => format!("text of at most {TEXT_BYTES_MAX} bytes"),
        Kind::Long => "text".into(),
        Kind::OneOf(names) => names.join(", "),
        Kind::Int => "a whole number".into(),
        Kind::Number => "a finite number".into(),
        Kind::Yes => "true or false".into(),
        Kind::List => format!("a list of at most {LIST_MAX} texts"),
        Kind::Map => "texts by key".into(),
        Kind::Object => "an object".into(),
        Kind::Objects => "a list of objects".into(),
    };
    Err(format!("`{name}` is `{}`; expected {expected}", shown(&value.to_string())))
}

/// A value short enough for an error.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(60).collect();
    let more = if short.len() < value.len() { "…" } else { "" };
    format!("{short}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        needed("answer", Kind::OneOf(&["left", "right"]), "which"),
        may("axes", Kind::Map, "by axis"),
        may("work_ms", Kind::Int, "time"),
        may("roles", Kind::List, "roles"),
        may("sure", Kind::Yes, "yes"),
    ];

    #[test]
    fn a_form_and_an_object_come_to_the_same() {
        let form = check(
            FIELDS,
            Sent::form(b"answer=left&axes.helpful=right&work_ms=12&roles=a&roles=b&sure=on&csrf=x"),
            false,
        );
        let object = json!({"answer": "left", "axes": {"helpful": "right"}, "work_ms": 12, "roles": ["a", "b"], "sure": true});
        let Value::Object(object) = object else { unreachable!() };
        assert_eq!(form, Ok(object.clone()));
        assert_eq!(check(FIELDS, Sent::json(object.clone()), true), Ok(object));
    }

    #[test]
    fn errors_name_field_found_and_expected() {
        let json = |text: &str| match serde_json::from_str(text).unwrap() {
            Value::Object(object) => Sent::json(object),
            _ => unreachable!(),
        };
        for (sent, message) in [
            (json("{}"), "`answer` is missing: which"),
            (json(r#"{"answer": "up"}"#), "`answer` is `\"up\"`; expected left, right"),
            (json(r#"{"answer": "left", "work_ms": "x"}"#), "`work_ms` is `\"x\"`; expected a whole number"),
            (json(r#"{"answer": "left", "axes": {"a": 1}}"#), "`axes` is `{\"a\":1}`; expected texts by key"),
            (
                json(r#"{"answer": "left", "Answer": 1}"#),
                "`Answer` is unknown here; expected answer, axes, work_ms, roles, sure",
            ),
            (Sent::form(b"answer=left&work_ms=soon"), "`work_ms` is `soon`; expected a whole number"),
        ] {
            assert_eq!(check(FIELDS, sent, true).unwrap_err(), message);
        }
    }
}
