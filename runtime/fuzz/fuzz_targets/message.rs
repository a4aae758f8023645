//! Messages between the runtime and init: what is understood says the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_runtime::process::message::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
});
