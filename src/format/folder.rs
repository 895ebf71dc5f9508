//! A model's folder: one place that knows what the files in it are called.

use super::config::{ModelConfig, ids};
use super::hub;
use super::json::{Document, Object, read_bytes};
use super::processor::ImageProcessorConfig;
use super::weights::Checkpoint;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A folder that holds a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    path: PathBuf,
}

impl ModelFolder {
    /// Finds `model`: a folder, a hub id (`org/name[@revision]`) in the offline hub cache, or `builtin:name`.
    pub fn find(model: &str) -> Result<Self> {
        Ok(Self { path: hub::resolve(model)? })
    }

    /// The folder at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    pub fn config(&self) -> Result<ModelConfig> {
        ModelConfig::read(&self.path)
    }

    /// The weights.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.path)
    }

    /// How pictures are prepared for `model`.
    pub fn image_processor(&self, model: &ModelConfig) -> Result<ImageProcessorConfig> {
        ImageProcessorConfig::read(&self.path, model)
    }

    /// `generation_config.json`; nothing is set where there is none.
    pub fn generation(&self) -> Result<GenerationConfig> {
        self.optional("generation_config.json", GenerationConfig::from_object)
    }

    /// `tokenizer_config.json`; nothing is set where there is none.
    pub fn tokenizer_config(&self) -> Result<TokenizerConfig> {
        self.optional("tokenizer_config.json", TokenizerConfig::from_object)
    }

    /// The text of the chat template: a file of its own, or inside `tokenizer_config.json`.
    pub fn chat_template(&self) -> Result<Option<String>> {
        let own = self.path.join("chat_template.jinja");
        if own.exists() {
            let text = String::from_utf8(read_bytes(&own)?);
            return text.map(Some).map_err(|broken| Error::file_because(own, "is not utf-8", broken));
        }
        let wrapped: TokenizerConfig = self.optional("chat_template.json", TokenizerConfig::from_object)?;
        match wrapped.chat_template {
            Some(template) => Ok(Some(template)),
            None => Ok(self.tokenizer_config()?.chat_template),
        }
    }

    /// The ids that end a text: what generation says, else what the model says.
    pub fn eos(&self, model: &ModelConfig) -> Result<Vec<u32>> {
        Ok(self.generation()?.eos.unwrap_or_else(|| model.eos.clone()))
    }

    fn optional<T: Default>(&self, name: &str, read: impl Fn(&Object) -> Result<T>) -> Result<T> {
        let path = self.path.join(name);
        if path.exists() { read(&Document::read(&path)?.root()?) } else { Ok(T::default()) }
    }
}

/// What `generation_config.json` sets. Sampling settings are the author's advice; a caller may take it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// The ids that end a text.
    pub eos: Option<Vec<u32>>,
    /// Whether to sample at all, rather than take the likeliest token.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens are kept.
    pub top_k: Option<usize>,
    /// How much probability is kept.
    pub top_p: Option<f64>,
    /// The least probability kept, as a share of the likeliest token's.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens already in the text.
    pub repetition_penalty: Option<f64>,
    /// The most tokens to generate.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads the bytes of a `generation_config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_object(&Document::parse(path, bytes)?.root()?)
    }

    fn from_object(object: &Object) -> Result<Self> {
        Ok(Self {
            eos: ids(object, "eos_token_id")?,
            do_sample: object.boolean("do_sample")?,
            temperature: object.number("temperature")?,
            top_k: object.whole("top_k", 0..=u32::MAX as usize)?,
            top_p: object.number("top_p")?,
            min_p: object.number("min_p")?,
            repetition_penalty: object.positive("repetition_penalty")?,
            max_new_tokens: object.whole("max_new_tokens", 1..=u32::MAX as usize)?,
        })
    }
}

/// What is needed of `tokenizer_config.json`; the vocabulary itself is in `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizerConfig {
    /// The text of the token that begins a text.
    pub bos: Option<String>,
    /// The text of the token that ends a text.
    pub eos: Option<String>,
    /// The text of the token that fills a batch.
    pub pad: Option<String>,
    /// Whether encoding begins with `bos`.
    pub add_bos: Option<bool>,
    /// The chat template; of several named ones, the default.
    pub chat_template: Option<String>,
}

impl TokenizerConfig {
    /// Reads the bytes of a `tokenizer_config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::from_object(&Document::parse(path, bytes)?.root()?)
    }

    fn from_object(object: &Object) -> Result<Self> {
        Ok(Self {
            bos: special(object, "bos_token")?,
            eos: special(object, "eos_token")?,
            pad: special(object, "pad_token")?,
            add_bos: object.boolean("add_bos_token")?,
            chat_template: template(object)?,
        })
    }
}

/// A special token: its text, or an object around it.
fn special(object: &Object, key: &str) -> Result<Option<String>> {
    let text = match object.get(key) {
        Some(Value::Object(_)) => match object.object(key)? {
            Some(token) => token.string("content")?,
            None => None,
        },
        _ => object.string(key)?,
    };
    Ok(text.map(str::to_owned))
}

/// A chat template: its text, or a list of named ones.
fn template(object: &Object) -> Result<Option<String>> {
    const KEY: &str = "chat_template";
    let Some(Value::Array(named)) = object.get(KEY) else {
        return Ok(object.string(KEY)?.map(str::to_owned));
    };
    let default = named.iter().find(|entry| entry["name"] == "default");
    match default.and_then(|entry| entry["template"].as_str()) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(object.fault(KEY, "none of the templates is named \"default\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generation_settings_are_read_as_published() {
        let file = json!({
            "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
            "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20
        });
        let path = Path::new("generation_config.json");
        let read = GenerationConfig::parse(path, file.to_string().as_bytes()).unwrap();
        let expected = GenerationConfig {
            eos: Some(vec![151_645, 151_643]),
            do_sample: Some(true),
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            repetition_penalty: Some(1.05),
            ..GenerationConfig::default()
        };
        assert_eq!(read, expected);
        let wrong = GenerationConfig::parse(path, b"{\"eos_token_id\": \"</s>\"}").unwrap_err().to_string();
        assert!(
            wrong.starts_with("generation_config.json: eos_token_id: expected a whole number"),
            "{wrong}"
        );
    }

    #[test]
    fn tokens_and_templates_come_in_two_styles() {
        let read = |value: Value| {
            TokenizerConfig::parse(Path::new("tokenizer_config.json"), value.to_string().as_bytes())
        };
        let plain = read(json!({"bos_token": null, "eos_token": "</s>", "chat_template": "hello"})).unwrap();
        let wrapped = read(json!({
            "eos_token": {"content": "</s>", "lstrip": false},
            "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "hello"}]
        }));
        assert_eq!(plain, wrapped.unwrap());
        assert_eq!((plain.bos, plain.eos.as_deref()), (None, Some("</s>")));
        let unnamed =
            read(json!({"chat_template": [{"name": "rag", "template": "x"}]})).unwrap_err().to_string();
        assert!(unnamed.contains("chat_template: none of the templates is named \"default\""), "{unnamed}");
    }

    #[test]
    fn the_template_of_its_own_file_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let folder = ModelFolder::at(home.path());
        assert_eq!(folder.chat_template().unwrap(), None);
        let mut expected = Vec::new();
        for (name, text) in [
            ("tokenizer_config.json", r#"{"chat_template": "third"}"#),
            ("chat_template.json", r#"{"chat_template": "second"}"#),
            ("chat_template.jinja", "first"),
        ] {
            std::fs::write(home.path().join(name), text).unwrap();
            expected.push(folder.chat_template().unwrap().unwrap());
        }
        assert_eq!(expected, ["third", "second", "first"]);
    }
}
