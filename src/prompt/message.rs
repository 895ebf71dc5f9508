//! A conversation as people write it: messages of text and pictures, in Hugging Face's or OpenAI's JSON.
//!
//! A message keeps every field it came with (tool calls, reasoning, names), because a chat template may ask
//! for any of them. Pictures are taken out: the template sees `{"type": "image"}` wherever one stands, and the
//! picture itself becomes an [`ImageReference`], in the order of reading.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Where a picture is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageReference {
    /// A file, relative to wherever the request came from.
    Path(PathBuf),
    /// The encoded file itself (png, jpeg, ...), from a data URL, base64 or the caller's memory.
    Bytes(Vec<u8>),
}

impl ImageReference {
    /// Reads a path, a `file://` URL or a `data:` URL as found in a request.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Err(Error::caller(
                "image",
                format!("`{}` is on the network, give a path or a data URL", shortened(text)),
            ));
        }
        if let Some(rest) = text.strip_prefix("data:") {
            let Some((_, data)) = rest.split_once(";base64,") else {
                return Err(Error::caller(
                    "image",
                    format!(
                        "data URL `{}` is not base64, expected `data:image/...;base64,...`",
                        shortened(text)
                    ),
                ));
            };
            return Self::from_base64(data);
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.is_empty() {
            return Err(Error::caller("image", "empty path"));
        }
        Ok(ImageReference::Path(path.into()))
    }

    /// Reads a picture given as bare base64, padded or not, in one line or several.
    pub fn from_base64(data: &str) -> Result<Self> {
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let plain: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        LENIENT.decode(plain).map(ImageReference::Bytes).map_err(|e| {
            Error::caller("image", format!("base64 of {} characters does not decode: {e}", data.len()))
        })
    }
}

/// One piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture: its own, or the next one of those given beside the messages.
    Image(Option<ImageReference>),
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Nothing (`null` or no `content` key), as beside an assistant's tool calls.
    Empty,
    /// Words only.
    Text(String),
    /// Words and pictures.
    Parts(Vec<Part>),
    /// A structured tool result, handed to the template as it is.
    Data(Map<String, Value>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or whatever the template knows.
    pub role: String,
    /// What it says.
    pub content: Content,
    /// Every other field, in order (`tool_calls`, `reasoning_content`, `name`, ...).
    pub fields: Map<String, Value>,
}

impl Message {
    /// A turn of words.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Message { role: role.into(), content: Content::Text(text.into()), fields: Map::new() }
    }

    /// A user's turn: pictures first, then words.
    pub fn user(images: impl IntoIterator<Item = ImageReference>, text: impl Into<String>) -> Self {
        let mut parts: Vec<Part> = images.into_iter().map(|image| Part::Image(Some(image))).collect();
        if parts.is_empty() {
            return Self::text("user", text);
        }
        parts.push(Part::Text(text.into()));
        Message { role: "user".into(), content: Content::Parts(parts), fields: Map::new() }
    }

    /// Reads one message of a request.
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(mut fields) = value else {
            return Err(Error::caller("message", format!("expected an object, got {}", kind(&value))));
        };
        let role = match fields.shift_remove("role") {
            Some(Value::String(role)) => role,
            Some(other) => {
                return Err(Error::caller("message", format!("`role` is {}, not text", kind(&other))));
            }
            None => return Err(Error::caller("message", "no `role`")),
        };
        let content = match fields.shift_remove("content") {
            None | Some(Value::Null) => Content::Empty,
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(parts)) => {
                Content::Parts(parts.into_iter().map(part_from_json).collect::<Result<_>>()?)
            }
            Some(Value::Object(data)) => Content::Data(data),
            Some(other) => {
                return Err(Error::caller(
                    "message",
                    format!(
                        "`content` of the {role} message is {}, expected text or a list of parts",
                        kind(&other)
                    ),
                ));
            }
        };
        Ok(Message { role, content, fields })
    }

    /// Reads the `messages` of a request.
    pub fn list_from_json(value: Value) -> Result<Vec<Self>> {
        match value {
            Value::Array(messages) => messages.into_iter().map(Self::from_json).collect(),
            other => {
                Err(Error::caller("messages", format!("expected a list of messages, got {}", kind(&other))))
            }
        }
    }

    /// The message as a template sees it, every text passed through `text`.
    pub fn to_template(&self, text: &dyn Fn(&str) -> String) -> Value {
        let content = match &self.content {
            Content::Empty => Value::Null,
            Content::Text(words) => Value::String(text(words)),
            Content::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(words) => json!({"type": "text", "text": text(words)}),
                    Part::Image(_) => json!({"type": "image"}),
                })
                .collect(),
            Content::Data(data) => map_texts(&Value::Object(data.clone()), text),
        };
        let mut message = Map::new();
        message.insert("role".into(), Value::String(self.role.clone()));
        message.insert("content".into(), content);
        message.extend(self.fields.iter().map(|(key, value)| (key.clone(), map_texts(value, text))));
        Value::Object(message)
    }

    /// Number of pictures in the message.
    pub fn image_count(&self) -> usize {
        match &self.content {
            Content::Parts(parts) => parts.iter().filter(|part| matches!(part, Part::Image(_))).count(),
            _ => 0,
        }
    }
}

/// The pictures of a conversation in reading order. A part without a picture of its own takes the next of
/// `given`; both must come out even.
pub fn images(messages: &[Message], given: &[ImageReference]) -> Result<Vec<ImageReference>> {
    let parts = messages.iter().flat_map(|message| match &message.content {
        Content::Parts(parts) => parts.as_slice(),
        _ => &[],
    });
    let places: Vec<&Option<ImageReference>> = parts
        .filter_map(|part| match part {
            Part::Image(own) => Some(own),
            Part::Text(_) => None,
        })
        .collect();
    let open = places.iter().filter(|own| own.is_none()).count();
    if open != given.len() {
        return Err(Error::caller(
            "images",
            format!(
                "the messages leave {open} image placeholder(s) to fill, but {} image(s) are given; \
                 write one {{\"type\": \"image\"}} part per image",
                given.len()
            ),
        ));
    }
    let mut given = given.iter();
    Ok(places.into_iter().filter_map(|own| own.as_ref().or_else(|| given.next())).cloned().collect())
}

/// Keys under which the ecosystem puts a picture into a part.
const IMAGE_KEYS: [&str; 5] = ["image", "image_url", "url", "path", "base64"];

fn part_from_json(value: Value) -> Result<Part> {
    let Value::Object(part) = value else {
        return Err(Error::caller(
            "message",
            format!("a content part is {}, expected an object", kind(&value)),
        ));
    };
    let named = part.get("type").map(|name| name.as_str().unwrap_or("not a text"));
    match named {
        Some("text" | "input_text") => text_part(&part),
        Some("image" | "image_url" | "input_image") => image_part(&part),
        None if part.contains_key("text") => text_part(&part),
        None if IMAGE_KEYS.iter().any(|key| part.contains_key(*key)) => image_part(&part),
        Some(other) => Err(Error::caller(
            "message",
            format!("content part of type `{other}`, expected `text` or `image`"),
        )),
        None => Err(Error::caller("message", "a content part has neither `type` nor `text` nor `image`")),
    }
}

fn text_part(part: &Map<String, Value>) -> Result<Part> {
    match part.get("text") {
        Some(Value::String(text)) => Ok(Part::Text(text.clone())),
        Some(other) => {
            Err(Error::caller("message", format!("`text` of a part is {}, not text", kind(other))))
        }
        None => Err(Error::caller("message", "a text part has no `text`")),
    }
}

fn image_part(part: &Map<String, Value>) -> Result<Part> {
    let found =
        IMAGE_KEYS.iter().find_map(|key| Some((*key, part.get(*key).filter(|value| !value.is_null())?)));
    found.map(|(key, value)| image_reference(key, value)).transpose().map(Part::Image)
}

/// A picture as data sets and requests write it: text, or an object holding `url`, `path`, `base64` or `bytes`.
fn image_reference(key: &str, value: &Value) -> Result<ImageReference> {
    match value {
        Value::String(data) if key == "base64" || key == "bytes" => ImageReference::from_base64(data),
        Value::String(text) => ImageReference::parse(text),
        Value::Object(object) => {
            let inner = ["bytes", "base64", "url", "path"]
                .into_iter()
                .find_map(|key| Some((key, object.get(key).filter(|value| value.is_string())?)));
            match inner {
                Some((key, value)) => image_reference(key, value),
                None => {
                    Err(Error::caller("image", format!("`{key}` holds no `url`, `path` or `base64` text")))
                }
            }
        }
        other => {
            Err(Error::caller("image", format!("`{key}` is {}, expected a path or a data URL", kind(other))))
        }
    }
}

/// `value` with every text in it (not the keys) passed through `text`.
pub(crate) fn map_texts(value: &Value, text: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(words) => Value::String(text(words)),
        Value::Array(items) => items.iter().map(|item| map_texts(item, text)).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), map_texts(value, text))).collect())
        }
        other => other.clone(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short}...") } else { short }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Message::from_json(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(value: Value) -> Result<Message> {
        Message::from_json(value)
    }

    #[test]
    fn every_spelling_of_a_picture_is_one_image_part() {
        let bytes = ImageReference::Bytes(b"abc".to_vec());
        let four = ImageReference::Bytes(b"abcd".to_vec());
        let path = ImageReference::Path("a.png".into());
        for (part, expected) in [
            (json!({"type": "image"}), None),
            (json!({"type": "image", "image": null}), None),
            (json!({"type": "image", "image": "a.png"}), Some(&path)),
            (json!({"image": "a.png"}), Some(&path)),
            (json!({"type": "image", "url": "file://a.png"}), Some(&path)),
            (json!({"type": "image", "path": "a.png"}), Some(&path)),
            (json!({"type": "image", "image": {"bytes": null, "path": "a.png"}}), Some(&path)),
            (json!({"type": "image", "base64": "YWJj"}), Some(&bytes)),
            (json!({"type": "image", "base64": "YWJj\nZA"}), Some(&four)),
            (json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}), Some(&bytes)),
            (json!({"type": "image_url", "image_url": "data:image/png;base64,YWJj"}), Some(&bytes)),
        ] {
            let message = message(json!({"role": "user", "content": [part.clone()]})).unwrap();
            assert_eq!(message.content, Content::Parts(vec![Part::Image(expected.cloned())]), "{part}");
            assert_eq!(message.to_template(&str::to_owned)["content"], json!([{"type": "image"}]));
        }
    }

    #[test]
    fn fields_reach_the_template_in_order_and_texts_are_mapped_everywhere() {
        let message = message(json!({
            "tool_calls": [{"function": {"name": "f", "arguments": {"z": "a", "b": 1}}}],
            "content": null, "role": "assistant", "name": "a",
        }))
        .unwrap();
        let seen = message.to_template(&|text| text.replace('a', "A"));
        assert_eq!(
            seen.to_string(),
            r#"{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":{"z":"A","b":1}}}],"name":"A"}"#
        );
    }

    #[test]
    fn given_images_fill_the_open_places_in_reading_order() {
        let list = json!([
            {"role": "user", "content": [{"type": "image"}, {"type": "image", "image": "own"}, {"type": "image"}]},
        ]);
        let messages = Message::list_from_json(list).unwrap();
        let reference = |name: &str| ImageReference::Path(name.into());
        let found = images(&messages, &[reference("first"), reference("second")]).unwrap();
        assert_eq!(found, [reference("first"), reference("own"), reference("second")]);
        for given in [vec![], vec![reference("only")], vec![reference("x"); 3]] {
            let error = images(&messages, &given).unwrap_err().to_string();
            assert!(
                error.contains("2 image placeholder") && error.contains(&given.len().to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_a_message_is_named() {
        for (value, expected) in [
            (json!("hello"), "expected an object, got a text"),
            (json!({"content": "x"}), "no `role`"),
            (json!({"role": 3}), "`role` is a number"),
            (json!({"role": "user", "content": 3}), "`content` of the user message is a number"),
            (json!({"role": "user", "content": ["x"]}), "a content part is a text"),
            (json!({"role": "user", "content": [{"type": "video"}]}), "type `video`"),
            (json!({"role": "user", "content": [{}]}), "neither `type` nor"),
            (json!({"role": "user", "content": [{"type": "text"}]}), "no `text`"),
            (json!({"role": "user", "content": [{"type": "image", "image": 1}]}), "`image` is a number"),
            (json!({"role": "user", "content": [{"type": "image", "url": "https://a/b"}]}), "on the network"),
            (
                json!({"role": "user", "content": [{"type": "image", "url": "data:image/png,x"}]}),
                "not base64",
            ),
            (json!({"role": "user", "content": [{"type": "image", "base64": "***"}]}), "does not decode"),
        ] {
            let error = message(value.clone()).unwrap_err().to_string();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
