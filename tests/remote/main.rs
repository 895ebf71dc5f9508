//! A remote reasoner against a server that does whatever servers do: every failure is named and counted, none becomes
//! words, and nothing is asked twice that was answered once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../support/server.rs"]
mod server;

mod failures;

use pellucid::prompt::message::{ImageReference, Message};
use pellucid::rl::remote::settings::{RemoteSettings, ServerConfig};
use pellucid::rl::remote::{Answered, Remote, Trouble};
use pellucid::rl::reply::Said;
use serde_json::{Value, json};
use server::{Act, Request, Server, completion, with_status};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// Repeats what it was told.
fn echo(request: &Request) -> Act {
    completion(&format!("you said {}", request.words()), "stop")
}

/// Pauses too short to be felt, and patience enough for a slow machine.
fn settings(url: String) -> RemoteSettings {
    RemoteSettings {
        model: Some("m".into()),
        concurrency: 4,
        pause: Duration::from_millis(1),
        patience: Duration::from_secs(60),
        ..RemoteSettings::at(url)
    }
}

fn told(words: &str) -> Vec<Message> {
    vec![Message::text("system", "be brief"), Message::text("user", words)]
}

fn remote(settings: RemoteSettings) -> Remote {
    Remote::new(settings, |_| {}).unwrap()
}

/// Asks one thing and waits.
fn asked(remote: &mut Remote, words: &str) -> Result<Said, Trouble> {
    remote.ask(1, &told(words), 0).unwrap();
    let (key, said) = remote.receive(true).unwrap().unwrap();
    assert_eq!(key, 1);
    said
}

fn all(remote: &mut Remote) -> BTreeMap<u64, Result<Said, Trouble>> {
    let mut found = BTreeMap::new();
    while let Some((key, said)) = remote.receive(true).unwrap() {
        assert!(found.insert(key, said).is_none(), "{key} came twice");
    }
    assert_eq!(remote.waiting(), 0);
    found
}

fn said(text: &str) -> Result<Said, Trouble> {
    Ok(Said { text: text.into(), tokens: 3, truncated: false })
}

#[test]
fn a_question_goes_out_as_it_should_and_the_reply_comes_back() {
    let server = Server::start(echo);
    let extra = json!({"chat_template_kwargs": {"enable_thinking": false}}).as_object().cloned().unwrap();
    let settings = RemoteSettings { top_p: Some(0.9), temperature: 0.6, extra, ..settings(server.url()) };
    let mut remote = remote(settings);
    remote.ask(7, &told("hello"), u64::MAX).unwrap();
    assert_eq!(remote.waiting(), 1);
    assert_eq!(remote.receive(true).unwrap(), Some((7, said("you said hello"))));
    assert_eq!(remote.receive(true).unwrap(), None);
    let request = &server.requests()[0];
    assert!(request.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", request.head);
    assert!(!request.head.to_lowercase().contains("authorization"));
    assert_eq!(
        request.body.to_string(),
        r#"{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}],"max_tokens":4096,"temperature":0.6,"top_p":0.9,"seed":2147483647,"chat_template_kwargs":{"enable_thinking":false}}"#
    );
    let counters = remote.counters();
    assert_eq!((counters.questions, counters.requests, counters.replies), (1, 1, 1));
    assert_eq!((counters.tokens_in, counters.tokens_out, counters.unmetered), (10, 3, 0));
}

#[test]
fn replies_find_their_questions_in_any_order() {
    // The first to come is answered when all have come.
    let came = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| {
        came.fetch_add(1, SeqCst);
        while request.words() == "0" && came.load(SeqCst) < 20 {
            thread::sleep(Duration::from_millis(1));
        }
        echo(request)
    });
    let mut remote = remote(settings(server.url()));
    for key in 0..20 {
        remote.ask(key, &told(&key.to_string()), 0).unwrap();
    }
    let mut order = Vec::new();
    let mut receive = |wait| -> Option<Answered> { remote.receive(wait).unwrap() };
    while let Some((key, reply)) = receive(true) {
        assert_eq!(reply, said(&format!("you said {key}")));
        order.push(key);
    }
    // When the last came, at most three others were without an answer.
    assert!(order.iter().position(|&key| key == 0) >= Some(16), "{order:?}");
    assert_eq!(order.len(), 20);
    assert_eq!(receive(false), None);
}

#[test]
fn nothing_is_waited_for_that_need_not_be() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let server = Server::start(move |request| {
        while !gate.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        echo(request)
    });
    let mut remote = remote(settings(server.url()));
    remote.ask(1, &told("a"), 0).unwrap();
    assert_eq!(remote.receive(false).unwrap(), None);
    assert_eq!(remote.waiting(), 1);
    open.store(true, SeqCst);
    assert_eq!(all(&mut remote).len(), 1);
}

#[test]
fn the_limit_of_requests_at_a_time_is_held_and_used() {
    let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&at_once), Arc::clone(&most));
    let server = Server::start(move |request| {
        peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        // Until as many have been here together as may be, none leaves.
        while peak.load(SeqCst) < 4 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(5));
        now.fetch_sub(1, SeqCst);
        echo(request)
    });
    let mut remote = remote(settings(server.url()));
    for key in 0..40 {
        remote.ask(key, &told(&key.to_string()), 0).unwrap();
    }
    assert_eq!(all(&mut remote).len(), 40);
    assert_eq!(most.load(SeqCst), 4);
}

#[test]
fn equal_questions_under_way_are_one() {
    let server = Server::start(echo);
    let mut remote = remote(settings(server.url()));
    for key in 0..10 {
        remote.ask(key, &told("same"), 5).unwrap();
    }
    remote.ask(10, &told("same"), 6).unwrap();
    let found = all(&mut remote);
    assert_eq!(found.len(), 11);
    assert!(found.values().all(|reply| *reply == said("you said same")));
    assert_eq!(server.requests().len(), 2);
    assert_eq!(remote.counters().joined, 9);
}

#[test]
fn replies_cut_off_say_so() {
    let server = Server::start(|_| completion("and so", "length"));
    let mut remote = remote(settings(server.url()));
    let expected = Said { text: "and so".into(), tokens: 3, truncated: true };
    assert_eq!(asked(&mut remote, "hello"), Ok(expected));
    assert_eq!(remote.counters().truncated, 1);
}

#[test]
fn a_budget_ends_asking_and_says_so() {
    let server = Server::start(echo);
    let mut two = remote(RemoteSettings { max_requests: Some(2), ..settings(server.url()) });
    two.ask(0, &told("a"), 0).unwrap();
    two.ask(1, &told("b"), 0).unwrap();
    two.ask(2, &told("a"), 0).unwrap(); // under way already
    let error = two.ask(3, &told("c"), 0).unwrap_err().to_string();
    assert!(error.contains("2 questions of reasoner.server.max_requests"), "{error}");
    // What was asked before still comes.
    assert_eq!(all(&mut two).len(), 3);
    assert_eq!(server.requests().len(), 2);
    let mut few = remote(RemoteSettings { max_total_tokens: Some(14), ..settings(server.url()) });
    assert!(asked(&mut few, "a").is_ok() && asked(&mut few, "b").is_ok());
    let error = few.ask(1, &told("c"), 0).unwrap_err().to_string();
    assert!(error.contains("26 tokens of the 14"), "{error}");
    // A budget of tokens needs somebody who counts them.
    let server = Server::start(|_| {
        let body = br#"{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}"#;
        with_status(200, "", body)
    });
    let mut few = remote(RemoteSettings { max_total_tokens: Some(1000), ..settings(server.url()) });
    assert!(asked(&mut few, "a").is_ok());
    let error = few.ask(1, &told("c"), 0).unwrap_err().to_string();
    assert!(error.contains("counts no tokens"), "{error}");
}

#[test]
fn what_was_answered_is_not_asked_again_not_even_by_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replies.jsonl");
    let server = Server::start(|request| match request.words().as_str() {
        "bad" => with_status(400, "", b"no"),
        "cut" => completion("half", "length"),
        _ => echo(request),
    });
    let settings = RemoteSettings { cache: Some(path.clone()), ..settings(server.url()) };
    let mut first = remote(settings.clone());
    for (key, words) in ["a", "b", "cut", "bad"].iter().enumerate() {
        first.ask(key as u64, &told(words), 3).unwrap();
    }
    let found = all(&mut first);
    first.ask(9, &told("a"), 3).unwrap();
    assert_eq!(first.receive(false).unwrap(), Some((9, said("you said a"))));
    assert_eq!((first.counters().cache_hits, server.requests().len()), (1, 4));
    drop(first);
    // Killed while it wrote: the last entry is torn, and that one alone is asked again.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let mut second = remote(settings.clone());
    for (key, words) in ["a", "b", "cut"].iter().enumerate() {
        second.ask(key as u64, &told(words), 3).unwrap();
    }
    let again = all(&mut second);
    assert!((0..3).all(|key| again[&key] == found[&key]));
    let counters = second.counters();
    assert_eq!((counters.cache_hits, counters.questions, counters.cache_torn), (2, 1, 1));
    assert_eq!(server.requests().len(), 5);
    // Trouble is not kept; another seed, model or temperature is another question.
    assert!(asked(&mut second, "bad").is_err());
    second.ask(1, &told("a"), 4).unwrap();
    assert_eq!(all(&mut second).len(), 1);
    drop(second);
    for other in [
        RemoteSettings { model: Some("n".into()), ..settings.clone() },
        RemoteSettings { temperature: 1.0, ..settings.clone() },
        RemoteSettings { max_tokens: 5, ..settings.clone() },
    ] {
        let mut other = remote(other);
        other.ask(1, &told("a"), 3).unwrap();
        assert_eq!(all(&mut other).len(), 1);
        assert_eq!(other.counters().cache_hits, 0);
    }
    // And all of it is there for a third, budget or none.
    let mut third = remote(RemoteSettings { max_requests: Some(0), ..settings });
    third.ask(0, &told("a"), 3).unwrap();
    third.ask(1, &told("cut"), 3).unwrap();
    assert_eq!((all(&mut third).len(), third.counters().cache_torn), (2, 1));
}

#[test]
fn a_key_is_sent_and_goes_nowhere_else() {
    // Something of the environment that is surely there.
    let variable = "PATH";
    let secret = std::env::var(variable).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("replies.jsonl");
    let told_back = secret.clone();
    let server = Server::start(move |request| match request.words().as_str() {
        "good" => completion(&format!("your key is {told_back}"), "stop"),
        "garbage" => with_status(200, "", format!("<p>{told_back}</p>").as_bytes()),
        _ => with_status(401, "", json!({"error": {"message": told_back}}).to_string().as_bytes()),
    });
    let settings = RemoteSettings {
        api_key_env: Some(variable.into()),
        cache: Some(cache.clone()),
        max_troubles: 3,
        ..settings(server.url())
    };
    let mut remote = remote(settings);
    let mut shown = format!("{remote:?}");
    for words in ["good", "bad", "garbage"] {
        shown += &format!("{:?}", asked(&mut remote, words));
    }
    remote.ask(1, &told("worse"), 0).unwrap();
    shown += &format!("{:?}", remote.receive(true).unwrap_err());
    shown += &std::fs::read_to_string(cache).unwrap();
    assert!(
        shown.contains("your key is (the key)") && shown.contains("who") | shown.contains("401"),
        "{shown}"
    );
    assert!(!shown.contains(&secret));
    for request in server.requests() {
        assert!(request.head.contains(&format!("Bearer {secret}")), "the key was not sent");
        assert!(!request.body.to_string().contains(&secret));
    }
    let missing =
        RemoteSettings { api_key_env: Some("PELLUCID_NO_SUCH_KEY".into()), ..self::settings(server.url()) };
    let error = Remote::new(missing, |_| {}).unwrap_err().to_string();
    assert!(error.contains("PELLUCID_NO_SUCH_KEY"), "{error}");
}

#[test]
fn certificates_are_read_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.pem");
    let opened = || {
        let certificates = Some(path.clone());
        let settings = RemoteSettings { certificates, ..settings("https://localhost".into()) };
        Remote::new(settings, |_| {}).map(drop).map_err(|error| error.to_string())
    };
    assert!(opened().unwrap_err().contains("cannot be read"));
    std::fs::write(&path, "certainly").unwrap();
    assert!(opened().unwrap_err().contains("holds no certificates"));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").unwrap();
    assert!(opened().unwrap_err().contains("is no PEM"));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert_eq!(opened(), Ok(()));
}

#[test]
fn the_only_model_is_found_and_several_are_asked_about() {
    let models = |body: &'static str| {
        let server = Server::start(move |_| with_status(200, "", body.as_bytes()));
        let nameless = RemoteSettings { model: None, retries: 0, ..settings(server.url()) };
        (Remote::new(nameless, |_| {}).map(|remote| remote.model().to_owned()), server)
    };
    let (model, server) = models(r#"{"object": "list", "data": [{"id": "only", "object": "model"}]}"#);
    assert_eq!(model.unwrap(), "only");
    assert!(server.requests()[0].head.starts_with("GET /v1/models"));
    for (body, expected) in [
        (r#"{"data": [{"id": "a"}, {"id": "b"}]}"#, "several models"),
        (r#"{"data": []}"#, "list of models"),
        (r#"{"data": [{"name": "a"}]}"#, "list of models"),
        ("[]", "list of models"),
        ("", "list of models"),
    ] {
        let error = models(body).0.unwrap_err().to_string();
        assert!(error.contains(expected), "{body}: {error}");
    }
}

#[test]
fn words_the_assistant_began_are_gone_on_with_and_pictures_are_refused() {
    let server = Server::start(echo);
    let mut remote = remote(settings(server.url()));
    let mut messages = told("is it?");
    messages.push(Message::text("assistant", "SOLVED"));
    remote.ask(1, &messages, 0).unwrap();
    assert_eq!(all(&mut remote).len(), 1);
    let body = &server.requests()[0].body;
    assert_eq!(
        (&body["continue_final_message"], &body["add_generation_prompt"]),
        (&json!(true), &json!(false))
    );
    let picture = Message::user([ImageReference::Path("a.png".into())], "what is it?");
    let error = remote.ask(1, &[picture], 0).unwrap_err().to_string();
    assert!(error.contains("words alone"), "{error}");
}

#[test]
fn a_configuration_says_what_it_cannot_mean() {
    let read = |text: &str| toml::from_str::<ServerConfig>(text).unwrap();
    let config = read("patience = 60\nconcurrency = 3\nextra = { top_k = 20 }");
    let settings = config.settings("http://localhost:8000").unwrap();
    assert_eq!((settings.patience, settings.concurrency), (Duration::from_secs(60), 3));
    assert_eq!(settings.extra["top_k"], 20);
    let usual = read("").settings("u").unwrap();
    assert_eq!(usual, RemoteSettings::at("u"));
    assert!(usual.patience >= Duration::from_secs(300), "a minute without a server loses nothing");
    for (text, expected) in [
        ("concurrency = 0", "concurrency is 0"),
        ("concurrency = 1000000", "from 1 to 4096"),
        ("timeout = nan", "timeout is NaN"),
        ("timeout = 1e300", "timeout is 1"),
        ("patience = 0.0", "patience is 0"),
        ("max_troubles = 0", "max_troubles is 0"),
    ] {
        let error = read(text).settings("u").unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let unknown = toml::from_str::<ServerConfig>("patients = 3").unwrap_err();
    assert!(unknown.to_string().contains("unknown field `patients`"));
}
