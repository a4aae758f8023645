//! From gRPC calls to operations.

use std::sync::Arc;

use prost::Message;

use super::Snapshotter;
use super::filter::Filters;
use super::grpc::server::{Call, Service};
use super::grpc::{Code, Status};
use super::messages::{
    CommitRequest, Empty, Info, InfoResponse, KeyRequest, ListRequest, ListResponse, Mount, MountsResponse, PrepareRequest,
    Timestamp, UpdateRequest, UsageResponse,
};
use super::records::{Kind, Record};
use crate::source::BoxFuture;

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// Snapshots in one message of a list.
const BATCH: usize = 100;

impl Service for Snapshotter {
    fn call(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<Vec<u8>>, Status>> {
        Box::pin(async move {
            let begin = std::time::Instant::now();
            let method = call.method.clone();
            let answered = self.clone().answer(call).await;
            self.collect_soon();
            let how = answered.as_ref().map_or_else(|status| format!("{:?}: {}", status.code, status.message), |_| "done".into());
            tracing::debug!("{}: {how} ({:?})", method.trim_start_matches(SERVICE), begin.elapsed());
            answered
        })
    }
}

impl Snapshotter {
    async fn answer(self: Arc<Self>, call: Call) -> Result<Vec<Vec<u8>>, Status> {
        let Call { method, namespace, message, .. } = call;
        match method.strip_prefix(SERVICE) {
            Some("Prepare") => {
                let request: PrepareRequest = decode(&message)?;
                one(&mounts(self.prepare(namespace, request, Kind::Active).await?))
            }
            Some("View") => one(&mounts(self.prepare(namespace, decode(&message)?, Kind::View).await?)),
            Some("Mounts") => one(&mounts(self.mounts(decode::<KeyRequest>(&message)?.key).await?)),
            Some("Commit") => {
                let CommitRequest { name, key, labels, .. } = decode(&message)?;
                self.commit(key, name, labels).await?;
                one(&Empty {})
            }
            Some("Remove") => {
                self.remove(decode::<KeyRequest>(&message)?.key).await?;
                one(&Empty {})
            }
            Some("Stat") => {
                let KeyRequest { key, .. } = decode(&message)?;
                one(&info_response(self.with(move |records| records.get(&key)).await?))
            }
            Some("Update") => {
                let UpdateRequest { info, update_mask, .. } = decode(&message)?;
                let info = info.ok_or_else(|| Status::new(Code::InvalidArgument, "updating a snapshot: no info was given"))?;
                one(&info_response(self.update(info, update_mask.unwrap_or_default().paths).await?))
            }
            Some("List") => {
                let filters = Filters::parse(&decode::<ListRequest>(&message)?.filters)?;
                let all = self.with(|records| records.all()).await?;
                let found: Vec<Info> = all.into_iter().map(info).filter(|info| filters.match_info(info)).collect();
                Ok(found.chunks(BATCH).map(|batch| ListResponse { info: batch.to_vec() }.encode_to_vec()).collect())
            }
            Some("Usage") => {
                let usage = self.usage(decode::<KeyRequest>(&message)?.key).await?;
                let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
                one(&UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) })
            }
            Some("Cleanup") => {
                self.tidy().await?;
                self.collect().await?;
                one(&Empty {})
            }
            _ => Err(Status::new(Code::Unimplemented, format!("{method} is nothing that a snapshotter has"))),
        }
    }
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    M::decode(message).map_err(|e| Status::new(Code::InvalidArgument, format!("reading a request: {e}")))
}

fn one(answer: &impl Message) -> Result<Vec<Vec<u8>>, Status> {
    Ok(vec![answer.encode_to_vec()])
}

fn mounts(mounts: Vec<Mount>) -> MountsResponse {
    MountsResponse { mounts }
}

fn info_response(record: Record) -> InfoResponse {
    InfoResponse { info: Some(info(record)) }
}

/// As containerd sees a snapshot.
pub(super) fn info(record: Record) -> Info {
    Info {
        name: record.name,
        parent: record.parent,
        kind: record.kind as i32,
        created_at: Some(Timestamp::of(record.created)),
        updated_at: Some(Timestamp::of(record.updated)),
        labels: record.labels,
    }
}
