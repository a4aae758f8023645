//! How the bytes of a chunk in the blob become its content.

use std::io;

use zstd::stream::raw::{InBuffer, Operation as _, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::layer::LayerKind;

/// The largest window a frame may ask for: 128 MiB, the limit of the zstd program too. Only what is written to is ever resident.
const WINDOW_LOG: u32 = 27;

/// A decompressor, which is used for one chunk after the other.
pub(in super::super) enum Codec {
    /// Whole frames of zstd.
    Zstd(zstd::stream::raw::Decoder<'static>),
}

/// What one step of a [`Codec`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Step {
    /// Bytes of input that are done with.
    pub taken: usize,
    /// Bytes of output.
    pub made: usize,
    /// Whether a chunk may end here.
    pub ended: bool,
}

impl Codec {
    /// The one for layers of this kind.
    pub fn of(kind: LayerKind) -> io::Result<Self> {
        match kind {
            LayerKind::ZstdChunked => {
                let mut zstd = zstd::stream::raw::Decoder::new()?;
                zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                Ok(Self::Zstd(zstd))
            }
            LayerKind::Stream => Err(io::Error::new(io::ErrorKind::Unsupported, "its layer has no random access")),
            LayerKind::Estargz | LayerKind::GzipSeek => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "its layer is decompressed by spans"))
            }
        }
    }

    /// A chunk begins, whatever the last one left behind.
    pub fn begin(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(zstd) => zstd.reinit(),
        }
    }

    /// Decompresses some of `input`. It is to be called again with what is left until it neither takes nor fills all of `output`.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        match self {
            Self::Zstd(zstd) => {
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
                let hint = zstd.run(&mut from, &mut to).map_err(|e| io::Error::other(format!("it is not valid zstd: {e}")))?;
                Ok(Step { taken: from.pos(), made: to.pos(), ended: hint == 0 })
            }
        }
    }
}
