//! Client and server against each other, and bytes that are no messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixListener;

use super::client::Channel;
use super::server::{Call, Service, serve};
use super::{Code, Status, escaped, framed, messages, timeout, unescaped};
use crate::snapshotter::messages::KeyRequest;
use crate::source::BoxFuture;

const DEADLINE: Duration = Duration::from_secs(60);

/// Says what it was asked, as often as the method says.
struct Echo;

impl Service for Echo {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            match call.method.strip_prefix("/echo/") {
                Some("never") => std::future::pending().await,
                Some("fail") => Err(Status::new(Code::AlreadyExists, "100% ü\n")),
                Some(times) => {
                    let asked = KeyRequest::decode(call.message).unwrap();
                    let answer = KeyRequest { snapshotter: call.namespace.unwrap_or_default(), key: asked.key };
                    Ok(vec![answer.encode_to_vec(); times.parse().unwrap()])
                }
                None => Err(Status::new(Code::Unimplemented, call.method)),
            }
        })
    }
}

#[tokio::test]
async fn calls_are_answered_with_any_number_of_messages_of_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), Arc::new(Echo)));
    let channel = Channel::connect(&socket).await.unwrap();
    // More than the window of a connection.
    for (times, length) in [(0, 1), (1, 0), (3, 10), (4, 200_000)] {
        let asked = KeyRequest { snapshotter: String::new(), key: "k".repeat(length) };
        let answers: Vec<KeyRequest> = channel.call(&format!("/echo/{times}"), "space", &asked).await.unwrap();
        assert_eq!(answers.len(), times);
        assert!(answers.iter().all(|answer| answer.snapshotter == "space" && answer.key == asked.key));
    }
    for (method, code) in [("/echo/fail", Code::AlreadyExists), ("/other", Code::Unimplemented)] {
        let failed = channel.call::<KeyRequest>(method, "space", &KeyRequest::default()).await.unwrap_err();
        assert_eq!(failed.code, code);
    }
    let failed = channel.hand_on("/echo/fail", b"", DEADLINE).await.unwrap_err();
    assert_eq!(failed.message, "100% ü\n", "as it was said");
    let answers = channel.hand_on("/echo/2", &KeyRequest::default().encode_to_vec(), DEADLINE).await.unwrap();
    assert_eq!(answers.len(), 2);
    let late = channel.hand_on("/echo/never", b"", Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(late.code, Code::DeadlineExceeded);
    assert!(channel.call::<KeyRequest>("/echo/1", "bad\nspace", &KeyRequest::default()).await.is_err());
    server.abort();
}

/// Tells when a call is given up.
struct Long(tokio::sync::mpsc::UnboundedSender<&'static str>);

struct Told(tokio::sync::mpsc::UnboundedSender<&'static str>);

impl Drop for Told {
    fn drop(&mut self) {
        // Nobody listens any more when the test has failed.
        self.0.send("given up").ok();
    }
}

impl Service for Long {
    const ENDS_WITH_CALLER: bool = true;

    fn call(self: Arc<Self>, _: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            let _told = Told(self.0.clone());
            self.0.send("begun").unwrap();
            std::future::pending().await
        })
    }
}

#[tokio::test]
async fn a_call_ends_with_its_caller_where_the_service_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), Arc::new(Long(sender))));
    let channel = Channel::connect(&socket).await.unwrap();
    let call = tokio::spawn(async move { channel.hand_on("/long", b"", DEADLINE).await });
    assert_eq!(events.recv().await, Some("begun"));
    call.abort();
    assert_eq!(tokio::time::timeout(DEADLINE, events.recv()).await.unwrap(), Some("given up"));
    server.abort();
}

#[test]
fn texts_and_times_of_headers() {
    for text in ["", "100% ü\n", "%", "%4"] {
        assert_eq!(unescaped(&escaped(text)), text);
    }
    for (text, wanted) in [("a%20b", "a b"), ("%zz%", "%zz%"), ("%+1", "%+1"), ("%C3", "\u{fffd}")] {
        assert_eq!(unescaped(text), wanted);
    }
    for (text, wanted) in [
        ("1H", Some(3_600_000)),
        ("2M", Some(120_000)),
        ("99999999S", Some(99_999_999_000)),
        ("250m", Some(250)),
        ("5000u", Some(5)),
        ("5000000n", Some(5)),
        ("", None),
        ("S", None),
        ("1", None),
        ("-1S", None),
        ("100000000S", None),
        ("1ü", None),
    ] {
        assert_eq!(timeout(text), wanted.map(Duration::from_millis), "{text}");
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let two = [framed(b"ab"), framed(b"")].concat();
    assert_eq!(messages(Bytes::from(two)).unwrap(), [&b"ab"[..], b""]);
    for (bytes, code) in [
        (&b"\0\0\0"[..], Code::Internal),
        (b"\0\0\0\0\x02a", Code::Internal),
        (b"\0\xff\xff\xff\xffab", Code::Internal),
        (b"\x01\0\0\0\x01a", Code::Unimplemented),
    ] {
        assert_eq!(messages(Bytes::copy_from_slice(bytes)).unwrap_err().code, code, "{bytes:?}");
    }
}
