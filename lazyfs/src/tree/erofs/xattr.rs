//! Extended attributes behind an inode.

use super::format::Fields;
use crate::wire::Reader;

/// Prefixes that are written as a number (`EROFS_XATTR_INDEX_*`), longest first where one begins another.
const PREFIXES: [(&[u8], u8); 5] =
    [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"user.", 1), (b"trusted.", 4), (b"security.", 6)];

const OVERLAY: &[u8] = b"trusted.overlay.";

/// The attributes as they stand behind the core of an inode; nothing where there are none.
///
/// The tree has only attributes with one of the prefixes and within the limits ([`super::super::merge`]).
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut fields =
        Fields(Vec::with_capacity(xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>() + 12));
    fields.0.extend([0; 12]); // no name filter, no shared attributes
    for (name, value) in xattrs {
        let (prefix, index) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)).expect("merging keeps no others");
        let name = &name[prefix.len()..];
        fields.0.extend([u8::try_from(name.len()).expect("names have a limit of 255 bytes"), *index]);
        fields.u16(u16::try_from(value.len()).expect("attributes of an inode have a limit of 64 KiB"));
        fields.0.extend(name);
        fields.0.extend(value);
        fields.0.resize(fields.0.len().next_multiple_of(4), 0);
    }
    fields.0
}

/// The name that overlayfs shows as `name`, where overlayfs would take `name` for its own.
pub(super) fn escape(name: &[u8]) -> Option<Vec<u8>> {
    let rest = name.strip_prefix(OVERLAY)?;
    Some([OVERLAY, b"overlay.", rest].concat())
}

/// Has the digest of a large file; hidden by overlayfs.
pub(super) const LARGE: &[u8] = b"trusted.overlay.towline";

/// Marks what stands for a character device 0:0.
pub(super) const WHITEOUT: &[u8] = b"trusted.overlay.overlay.whiteout";

/// What [`encode`] encoded, with whole names. What is out of bounds is not there.
pub(super) fn decode(encoded: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut left = Reader::new(encoded.get(12..).unwrap_or_default());
    let mut one = || {
        let (name_len, index, value_len) = (usize::from(left.u8()?), left.u8()?, usize::from(left.u16()?));
        let (name, value) = (left.take(name_len)?, left.take(value_len)?);
        let used = 4 + name_len + value_len;
        left.take(used.next_multiple_of(4) - used)?;
        let (prefix, _) = PREFIXES.iter().find(|(_, number)| *number == index)?;
        Some(([prefix, name].concat(), value.to_vec()))
    };
    std::iter::from_fn(&mut one).collect()
}

/// Whether an attribute is the tree's own, for overlayfs to find the content by.
pub(super) fn is_own(name: &[u8]) -> bool {
    name.strip_prefix(OVERLAY).is_some_and(|rest| !rest.starts_with(b"overlay."))
}

/// The attribute as the image has it; `None` for one that the tree has for overlayfs.
pub(super) fn unescape(name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let Some(rest) = name.strip_prefix(OVERLAY) else { return Some(name.to_vec()) };
    if name == WHITEOUT || (name == b"trusted.overlay.overlay.opaque" && value == b"x") {
        return None;
    }
    rest.strip_prefix(b"overlay.").map(|own| [OVERLAY, own].concat())
}
