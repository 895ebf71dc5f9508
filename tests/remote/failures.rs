//! What servers do wrong: each failure is told from the others, counted, and tried again where that may help.

use super::*;
use std::sync::Mutex;

#[test]
fn a_server_that_asks_for_time_gets_it() {
    for (status, header) in [
        (429, "retry-after: 0.001\r\n"),
        (503, "retry-after-ms: 1\r\n"),
        (429, ""),
        (502, ""),
        (529, "retry-after: -1\r\n"),
    ] {
        let server = Server::start(move |request| match request.number {
            0..3 => with_status(status, header, br#"{"error": {"message": "slow down"}}"#),
            _ => echo(request),
        });
        // No retries: being busy is no failure of the question's.
        let mut remote = remote(RemoteSettings { retries: 0, ..settings(server.url()) });
        assert_eq!(asked(&mut remote, "hello"), said("you said hello"));
        let counters = remote.counters();
        assert_eq!((counters.requests, counters.waits, counters.retries), (4, 3, 0));
    }
    // What it asks for is what it gets, up to the patience there is.
    for header in ["retry-after: 86400\r\n", "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n"] {
        let server = Server::start(move |request| match request.number {
            0 => with_status(429, header, b"tomorrow"),
            _ => echo(request),
        });
        let patience = Duration::from_millis(20);
        let mut patient = remote(RemoteSettings { patience, ..settings(server.url()) });
        assert_eq!(asked(&mut patient, "hello"), said("you said hello"));
        assert_eq!(patient.counters().waits, 1);
        let server = Server::start(move |_| with_status(429, header, b"tomorrow"));
        let mut patient = remote(RemoteSettings { patience, ..settings(server.url()) });
        let trouble = Trouble::Refused { status: 429, what: "tomorrow".into() };
        assert_eq!(asked(&mut patient, "hello"), Err(trouble));
        assert_eq!((patient.counters().requests, patient.counters().refused), (2, 1));
    }
}

#[test]
fn failures_that_pass_are_tried_again_and_others_are_not() {
    for (status, tries) in [(500, 3), (408, 3), (400, 1), (401, 1), (404, 1), (413, 1), (422, 1), (301, 1)] {
        let server = Server::start(move |_| {
            with_status(status, "location: http://elsewhere\r\n", br#"{"error": {"message": "no"}}"#)
        });
        let mut remote = remote(RemoteSettings { retries: 2, ..settings(server.url()) });
        let trouble = asked(&mut remote, "hello").unwrap_err();
        assert!(matches!(trouble, Trouble::Refused { status: s, .. } if s == status), "{trouble}");
        assert!(trouble.to_string().contains("http://elsewhere"), "{trouble}");
        let counters = remote.counters();
        assert_eq!(
            (server.requests().len(), counters.retries, counters.refused),
            (tries, tries as u64 - 1, 1)
        );
    }
    let server = Server::start(|request| match request.number {
        0 => with_status(500, "", b"oops"),
        1 => Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices".to_vec()), // and breaks off
        _ => echo(request),
    });
    let mut remote = remote(settings(server.url()));
    assert_eq!(asked(&mut remote, "hello"), said("you said hello"));
    assert_eq!((remote.counters().retries, remote.counters().refused), (2, 0));
}

#[test]
fn a_server_that_is_down_for_a_while_costs_nothing_but_the_while() {
    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut server = Server::start(echo);
    let address = server.address.to_string();
    let settings = RemoteSettings { retries: 0, ..settings(server.url()) };
    let mut remote = Remote::new(settings, |line| HEARD.lock().unwrap().push(line.to_owned())).unwrap();
    assert_eq!(asked(&mut remote, "before"), said("you said before"));
    server.stop();
    for key in 0..10 {
        remote.ask(key, &told(&key.to_string()), 0).unwrap();
    }
    while remote.counters().waits < 20 {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(remote.receive(false).unwrap(), None);
    let again = Server::start_at(&address, echo);
    let found = all(&mut remote);
    assert_eq!(found, (0..10).map(|key| (key, said(&format!("you said {key}")))).collect());
    // Each was asked exactly once of a server that was there.
    assert_eq!(again.requests().len(), 10);
    let counters = remote.counters();
    assert_eq!((counters.questions, counters.replies, counters.retries), (11, 11, 0));
    // Whoever watches was told when it went, once, and when it came back.
    let heard = HEARD.lock().unwrap();
    assert!(heard[0].contains("is away") && heard[0].contains(&address), "{heard:?}");
    assert!(heard[1].contains("is back") && heard.len() == 2, "{heard:?}");
}

#[test]
fn a_connection_that_was_closed_unannounced_is_made_again() {
    let server = Server::start(|request| match echo(request) {
        Act::Send(bytes) => {
            Act::Send(String::from_utf8(bytes).unwrap().replace("connection: close\r\n", "").into())
        }
        Act::Stall => unreachable!(),
    });
    let mut remote = remote(settings(server.url()));
    for i in 0..10 {
        assert_eq!(asked(&mut remote, &i.to_string()), said(&format!("you said {i}")));
    }
    assert_eq!(server.requests().len(), 10);
}

#[test]
fn a_server_that_stays_down_ends_the_run_by_name() {
    let mut server = Server::start(echo);
    server.stop();
    let patience = Duration::from_millis(5);
    let mut gone = remote(RemoteSettings { patience, ..settings(server.url()) });
    gone.ask(1, &told("hello"), 0).unwrap();
    let error = gone.receive(true).unwrap_err().to_string();
    assert!(
        error.contains(&server.url()) && error.contains("patience") && error.contains("refused"),
        "{error}"
    );
    // Also where a model has to be asked for first.
    let nameless = RemoteSettings { model: None, patience, ..settings(server.url()) };
    let error = Remote::new(nameless, |_| {}).unwrap_err().to_string();
    assert!(error.contains(&server.url()), "{error}");
}

#[test]
fn one_that_does_not_speak_tls_is_not_waited_for() {
    let server = Server::start(echo);
    let mut remote = remote(settings(server.url().replace("http:", "https:")));
    remote.ask(1, &told("hello"), 0).unwrap();
    let error = remote.receive(true).unwrap_err().to_string();
    assert!(error.contains("gives no replies"), "{error}");
}

#[test]
fn a_request_that_stalls_is_given_up_and_counted() {
    let server = Server::start(|request| match request.words().as_str() {
        "stall" => Act::Stall,
        _ => echo(request),
    });
    let timeout = Duration::from_millis(100);
    let mut remote = remote(RemoteSettings { timeout, retries: 1, ..settings(server.url()) });
    assert_eq!(asked(&mut remote, "stall"), Err(Trouble::Stalled));
    let counters = remote.counters();
    assert_eq!((counters.stalled, counters.requests, counters.replies), (1, 2, 0));
    // A head without a body is no better.
    let server = Server::start(|request| match request.number {
        0 => Act::Stall,
        _ => Act::Send(b"HTTP/1.1 200 OK\r\n\r\n{\"choices\": [".to_vec()),
    });
    let mut remote = self::remote(RemoteSettings { timeout, retries: 1, ..settings(server.url()) });
    assert!(matches!(asked(&mut remote, "x"), Err(Trouble::Garbage(_))));
}

#[test]
fn garbage_of_every_kind_is_named_and_never_words() {
    let whole = |body: &[u8]| match with_status(200, "", body) {
        Act::Send(bytes) => bytes,
        Act::Stall => unreachable!(),
    };
    let message = |message: Value| {
        whole(json!({"choices": [{"message": message, "finish_reason": "stop"}]}).to_string().as_bytes())
    };
    let mut huge = whole(&vec![b' '; 17 << 20]);
    huge.extend_from_slice(b"{}");
    for (bytes, expected) in [
        (whole(b"<html>hello</html>"), "no JSON"),
        (whole(b""), "no JSON"),
        (whole(b"{\"choices\": \"\xff\xfe\"}"), "no UTF-8"),
        (whole(b"{}"), "no choices"),
        (whole(br#"{"error": {"message": "all is well"}}"#), "all is well"),
        (whole(b"{\"choices\": [{}]}"), "finish_reason is null"),
        (message(json!({"content": ["a"]})), "not text"),
        (message(json!({"content": ""})), "content is empty"),
        (message(json!({"content": null, "reasoning_content": "so"})), "reasoning parser"),
        (message(json!("content")), "not text"),
        (whole(&vec![b'{'; 1 << 20]), "no JSON"),
        (huge, "longer than 16777216 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n{}".to_vec(), "broke off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n{}".to_vec(), ""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}".to_vec(), ""),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)).into_bytes(), ""),
        (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), ""),
        (vec![0; 4096], ""),
        (b"".to_vec(), ""),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let server = Server::start(move |_| Act::Send(bytes.clone()));
        let mut remote = remote(RemoteSettings { retries: 1, ..settings(server.url()) });
        match asked(&mut remote, "hello") {
            Err(Trouble::Garbage(what)) => {
                assert!(what.contains(expected) && what.len() < 600, "{shown}: {what}")
            }
            other => panic!("{shown}: {other:?}"),
        }
        assert_eq!((remote.counters().garbage, remote.counters().replies), (1, 0), "{shown}");
        assert_eq!(server.requests().len(), 2, "{shown}: garbage is asked again for");
    }
}

#[test]
fn a_server_with_nothing_but_trouble_ends_the_run() {
    let server = Server::start(|request| match request.words().as_str() {
        "good" => echo(request),
        _ => with_status(401, "", br#"{"error": {"message": "who are you"}}"#),
    });
    let mut remote = remote(RemoteSettings { max_troubles: 3, ..settings(server.url()) });
    // A reply in between begins the count again.
    for words in ["a", "b", "good", "a", "b"] {
        assert_eq!(asked(&mut remote, words).is_ok(), words == "good");
    }
    remote.ask(1, &told("c"), 0).unwrap();
    let error = remote.receive(true).unwrap_err().to_string();
    assert!(error.contains("3 questions in a row") && error.contains("who are you"), "{error}");
    assert_eq!(remote.counters().refused, 5);
}
