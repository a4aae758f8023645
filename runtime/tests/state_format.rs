//! The format of `state.json` is kept: another version of the runtime finds the containers of this one. When this fails, raise
//! `RECORD_VERSION` in `runtime/src/state.rs` and add a file.

use towline_runtime::state::Record;

#[test]
fn a_record_is_read_and_written_as_it_always_was() {
    let golden = include_str!("golden/state.json").trim_end();
    let record = Record::parse(golden.as_bytes()).expect("the golden record");
    assert_eq!(record.init_process_pid, 4711);
    assert_eq!(serde_json::to_string(&record).expect("a record is JSON"), golden);
}
