//! The loopback interface of a new network namespace: it is there but down, and programs expect 127.0.0.1 to work.

use super::Init;
use super::netdev::set_up;
use crate::error::{Error, Result};
use crate::netlink::Netlink;
use crate::process::namespaces::Kind;

/// The first interface of a network namespace is its loopback (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// Brings `lo` up, as runc and crun do.
pub fn up(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.namespaces.makes(Kind::NET) {
        return Ok(());
    }
    Netlink::open()
        .and_then(|netlink| set_up(&netlink, LOOPBACK))
        .map_err(|cause| Error::sys("asking the kernel over rtnetlink", cause))
}
