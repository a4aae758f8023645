//! Client and server against each other, and bytes that are no messages.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::net::UnixListener;

use super::client::Channel;
use super::server::{Call, Service, serve};
use super::{Code, Status, framed, messages};
use crate::snapshotter::messages::KeyRequest;
use crate::source::BoxFuture;

/// Says what it was asked, as often as the method says.
struct Echo;

impl Service for Echo {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            match call.method.strip_prefix("/echo/") {
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
    let mut channel = Channel::connect(&socket).await.unwrap();
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
    assert!(channel.call::<KeyRequest>("/echo/1", "bad\nspace", &KeyRequest::default()).await.is_err());
    server.abort();
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
