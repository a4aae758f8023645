//! The messages of containerd's snapshot and content services that are used here, with the numbers of its published protobufs
//! (`containerd.services.snapshots.v1`, `containerd.services.content.v1`, `containerd.types`). They have not changed from 1.6 to 2.x but
//! for fields that were added, which are skipped.

use std::collections::BTreeMap;

use prost::Message;

/// `google.protobuf.Empty`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// Of nanoseconds since the epoch.
    pub fn of(nanoseconds: i64) -> Self {
        const SECOND: i64 = 1_000_000_000;
        let nanos = i32::try_from(nanoseconds.rem_euclid(SECOND)).expect("less than a second");
        Self { seconds: nanoseconds.div_euclid(SECOND), nanos }
    }
}

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, tag = "3")]
    pub target: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `PrepareSnapshotRequest` and `ViewSnapshotRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PrepareRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
    #[prost(string, tag = "3")]
    pub parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
}

/// `PrepareSnapshotResponse`, `ViewSnapshotResponse` and `MountsResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MountsResponse {
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// `MountsRequest`, `RemoveSnapshotRequest`, `StatSnapshotRequest` and `UsageRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
}

/// `CommitSnapshotRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CommitRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub key: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: BTreeMap<String, String>,
}

/// `Info` of a snapshot.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Info {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub parent: String,
    #[prost(int32, tag = "3")]
    pub kind: i32,
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: BTreeMap<String, String>,
}

/// `StatSnapshotResponse` and `UpdateSnapshotResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// `UpdateSnapshotRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UpdateRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    #[prost(message, optional, tag = "3")]
    pub update_mask: Option<FieldMask>,
}

/// `ListSnapshotsRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListRequest {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, repeated, tag = "2")]
    pub filters: Vec<String>,
}

/// `ListSnapshotsResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// `UsageResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UsageResponse {
    #[prost(int64, tag = "1")]
    pub size: i64,
    #[prost(int64, tag = "2")]
    pub inodes: i64,
}

/// `ListContentRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListContentRequest {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `Info` of a content.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContentInfo {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub size: i64,
    #[prost(message, optional, tag = "3")]
    pub created_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

/// `ListContentResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListContentResponse {
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<ContentInfo>,
}

/// `ReadContentRequest`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub digest: String,
    #[prost(int64, tag = "2")]
    pub offset: i64,
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// `ReadContentResponse`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReadContentResponse {
    #[prost(int64, tag = "1")]
    pub offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_protobufs() {
        let labels = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let request = PrepareRequest { snapshotter: "s".into(), key: "a".into(), parent: "p".into(), labels: labels.clone() };
        assert_eq!(request.encode_to_vec(), b"\x0a\x01s\x12\x01a\x1a\x01p\x22\x06\x0a\x01k\x12\x01v");
        let mount = Mount { kind: "t".into(), source: "s".into(), target: String::new(), options: vec!["o".into()] };
        assert_eq!(MountsResponse { mounts: vec![mount] }.encode_to_vec(), b"\x0a\x09\x0a\x01t\x12\x01s\x22\x01o");
        let stamp = Timestamp::of(-1);
        assert_eq!((stamp.seconds, stamp.nanos), (-1, 999_999_999));
        // A field that a later version added is skipped.
        assert_eq!(KeyRequest::decode(&b"\x12\x01k\xfa\x01\x01x"[..]).unwrap().key, "k");
        assert!(KeyRequest::decode(&b"\x12\x05k"[..]).is_err());
    }
}
