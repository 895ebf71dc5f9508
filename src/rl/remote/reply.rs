//! What a server sent back, read with suspicion: words are only what is certainly a finished reply.

use super::Trouble;
use crate::rl::reply::Said;
use serde_json::Value;

/// A reply, and the tokens of its question, where the server counts them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub(super) said: Said,
    /// Tokens read and written.
    pub(super) usage: Option<(u64, u64)>,
}

/// Reads the body of a success.
pub(super) fn read(body: &[u8]) -> Result<Reply, Trouble> {
    let garbage = |what: String| Err(Trouble::Garbage(what));
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(broken) => return garbage(format!("byte {} of the body is no UTF-8", broken.valid_up_to())),
    };
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(broken) => return garbage(format!("the body is no JSON ({broken}): {}", shortened(text))),
    };
    let Some(choice) = value["choices"].as_array().and_then(|choices| choices.first()) else {
        return garbage(format!("no choices: {}", complaint(&value)));
    };
    let message = &choice["message"];
    let truncated = match choice["finish_reason"].as_str() {
        Some("stop") => false,
        Some("length") => true,
        Some("content_filter") => {
            return Err(Trouble::Refused { status: 200, what: "withheld by a content filter".to_owned() });
        }
        _ => return garbage(format!("finish_reason is {}", shortened(&choice["finish_reason"].to_string()))),
    };
    let thought = ["reasoning_content", "reasoning"].iter().any(|key| message[*key].is_string());
    let text = match &message["content"] {
        Value::String(text) => text.clone(),
        // It has thought until its tokens ran out, and the server keeps thoughts elsewhere: no garbage, but no answer.
        Value::Null if truncated && thought => String::new(),
        Value::Null if thought => {
            return garbage(
                "content is null and reasoning_content is not: the server took the whole reply for thought; start it \
                 without a reasoning parser"
                    .to_owned(),
            );
        }
        other => return garbage(format!("content is {}, not text", shortened(&other.to_string()))),
    };
    if text.trim().is_empty() && !truncated {
        return garbage("content is empty".to_owned());
    }
    let usage = &value["usage"];
    let usage = match (usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()) {
        (Some(read), Some(written)) => Some((read, written)),
        (None, None) => None,
        _ => return garbage(format!("usage is {}", shortened(&usage.to_string()))),
    };
    let tokens = usage.map_or(0, |(_, written)| written) as usize;
    Ok(Reply { said: Said { text, tokens, truncated }, usage })
}

/// What a server says about a failure, in any of the shapes that are about.
pub(super) fn complaint_in(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match serde_json::from_str(&text) {
        Ok(value) => complaint(&value),
        Err(_) if text.trim().is_empty() => "it does not say why".to_owned(),
        Err(_) => shortened(&text),
    }
}

fn complaint(value: &Value) -> String {
    // OpenAI's object, older vLLM's, llama.cpp's text, FastAPI's detail.
    let places = [
        &value["error"]["message"],
        &value["error"],
        &value["message"],
        &value["detail"][0]["msg"],
        &value["detail"],
    ];
    let message = places.iter().find_map(|place| place.as_str());
    shortened(message.unwrap_or(&value.to_string()))
}

/// At most 300 characters, in one line.
fn shortened(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(300) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn choice(message: Value, finish: &str) -> Vec<u8> {
        let body = json!({"choices": [{"message": message, "finish_reason": finish}],
                          "usage": {"prompt_tokens": 7, "completion_tokens": 2}});
        body.to_string().into_bytes()
    }

    #[test]
    fn what_is_no_reply_is_named() {
        for (body, expected) in [
            (b"".to_vec(), "no JSON"),
            (b"<html>Bad   gateway</html>".to_vec(), "Bad gateway"),
            (b"{\"choices\": [\xff]}".to_vec(), "byte 13"),
            (vec![b'['; 100_000], "no JSON"),
            (b"[]".to_vec(), "no choices"),
            (b"null".to_vec(), "no choices"),
            (b"{\"choices\": []}".to_vec(), "no choices"),
            (b"{\"choices\": {\"0\": 1}}".to_vec(), "no choices"),
            (b"{\"choices\": [1]}".to_vec(), "finish_reason is null"),
            (br#"{"error": {"message": "out of cheese"}}"#.to_vec(), "no choices: out of cheese"),
            (choice(json!({"content": 3}), "stop"), "content is 3, not text"),
            (choice(json!({"content": ["a"]}), "stop"), "not text"),
            (choice(json!({"content": null}), "stop"), "content is null, not text"),
            (choice(json!({"content": null}), "length"), "content is null, not text"),
            (choice(json!({"content": " \n"}), "stop"), "content is empty"),
            (choice(json!({"content": "a"}), "abort"), "finish_reason is \"abort\""),
            (choice(json!({"content": null, "tool_calls": []}), "tool_calls"), "tool_calls"),
            (choice(json!({"content": null, "reasoning_content": "hm"}), "stop"), "without a reasoning parser"),
            (
                br#"{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": -1}}"#
                    .to_vec(),
                "", // neither count is one: as if nothing were said
            ),
            (
                br#"{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}"#
                    .to_vec(),
                "usage is",
            ),
        ] {
            match (read(&body), expected) {
                (Ok(reply), "") => assert_eq!((reply.usage, reply.said.tokens), (None, 0)),
                (Err(Trouble::Garbage(what)), _) => {
                    assert!(what.contains(expected) && what.chars().count() < 450, "{expected}: {what}");
                }
                (other, _) => panic!("{}: {other:?}", String::from_utf8_lossy(&body)),
            }
        }
    }

    #[test]
    fn words_come_as_they_are() {
        let reply = read(&choice(json!({"content": "<think>a</think> b "}), "stop")).unwrap();
        assert_eq!(reply.said, Said { text: "<think>a</think> b ".into(), tokens: 2, truncated: false });
        assert_eq!(reply.usage, Some((7, 2)));
        let cut = read(&choice(json!({"content": "half a"}), "length")).unwrap();
        assert!(cut.said.truncated);
        // Out of tokens while thinking, where thoughts come apart.
        let cut = read(&choice(json!({"content": null, "reasoning_content": "hm"}), "length")).unwrap();
        assert_eq!(cut.said, Said { text: String::new(), tokens: 2, truncated: true });
        let filtered = read(&choice(json!({"content": ""}), "content_filter"));
        assert!(matches!(filtered, Err(Trouble::Refused { status: 200, .. })), "{filtered:?}");
    }

    #[test]
    fn complaints_of_every_shape_are_found() {
        for body in [
            r#"{"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}"#,
            r#"{"object": "error", "message": "too long"}"#,
            r#"{"error": "too long"}"#,
            r#"{"detail": "too long"}"#,
            r#"{"detail": [{"loc": ["body"], "msg": "too long"}]}"#,
            "too\n  long",
        ] {
            assert_eq!(complaint_in(body.as_bytes()), "too long", "{body}");
        }
        assert_eq!(complaint_in(b""), "it does not say why");
        assert_eq!(complaint_in(&[b'x'; 9999]).chars().count(), 301);
    }
}
