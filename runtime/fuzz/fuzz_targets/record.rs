//! state.json: what is understood is written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towline_runtime::state::Record;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::parse(bytes) {
        let json = serde_json::to_vec(&record).expect("a record is JSON");
        let again = Record::parse(&json).expect("what was written is read");
        assert_eq!(serde_json::to_vec(&again).expect("a record is JSON"), json);
    }
});
