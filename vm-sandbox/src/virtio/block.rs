//! A disk (virtio 1.2, section 5.2): a file of the host.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

use super::{Broken, Chain, Device, Queues};
use crate::error::{Error, Result};
use crate::memory::Ram;

/// Bytes of a sector, whatever the disk.
const SECTOR: u64 = 512;
const QUEUE: u16 = 256;
/// `VIRTIO_BLK_F_SEG_MAX`, `_RO`, `_FLUSH`.
const HAS_SEGMENTS: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const HAS_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_T_…`
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const NAME: u32 = 8;
/// `VIRTIO_BLK_S_…`
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Bytes of the name of a disk.
const NAME_LEN: usize = 20;
/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    len: u64,
    read_only: bool,
    name: [u8; NAME_LEN],
    config: [u8; 16],
}

impl Block {
    /// A file as disk; what is behind its last whole sector is not seen.
    pub fn new(name: &str, file: File, read_only: bool) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::new(format!("looking at the disk {name}"), e))?.len();
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(len / SECTOR).to_le_bytes());
        config[12..].copy_from_slice(&(u32::from(QUEUE) - 2).to_le_bytes());
        let mut short = [0; NAME_LEN];
        let tail = name.rsplit('/').next().unwrap_or_default().as_bytes();
        let kept = tail.len().min(NAME_LEN);
        short[..kept].copy_from_slice(&tail[..kept]);
        Ok(Self { file, len: len / SECTOR * SECTOR, read_only, name: short, config })
    }

    /// Works on one request. Returns how many bytes were written into it.
    fn serve(&self, chain: Chain<'_>, memory: &Ram) -> Result<usize, Broken> {
        let (mut reader, mut writer) = (chain.clone().reader(memory)?, chain.writer(memory)?);
        // u32 kind, u32 reserved, u64 sector.
        let mut head = [0; 16];
        reader.read_exact(&mut head)?;
        let kind = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        let room =
            writer.available_bytes().checked_sub(1).ok_or_else(|| Broken("a request has no room for its status".into()))?;
        let mut status_of = writer.split_at(room)?;
        let status = match kind {
            READ => self.range(sector, room).map_or(FAILED, |at| self.copy_out(at, room, &mut writer)),
            WRITE if self.read_only => FAILED,
            WRITE => match self.range(sector, reader.available_bytes()) {
                Some(at) => self.copy_in(at, &mut reader)?,
                None => FAILED,
            },
            FLUSH => self.file.sync_data().map_or(FAILED, |()| OK),
            NAME if room >= NAME_LEN => writer.write_all(&self.name).map(|()| OK)?,
            _ => UNSUPPORTED,
        };
        let written = writer.bytes_written();
        status_of.write_obj(status)?;
        Ok(written + 1)
    }

    /// Where these bytes are, if all of them are on the disk.
    fn range(&self, sector: u64, len: usize) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(u64::try_from(len).ok()?)?;
        (end <= self.len).then_some(start)
    }

    fn copy_out(&self, mut at: u64, len: usize, writer: &mut virtio_queue::Writer<'_>) -> u8 {
        let (mut left, mut piece) = (len, vec![0; PIECE.min(len)]);
        while left > 0 {
            let now = left.min(piece.len());
            let copied = self.file.read_exact_at(&mut piece[..now], at).and_then(|()| writer.write_all(&piece[..now]));
            if let Err(error) = copied {
                tracing::warn!("reading a disk: {error}");
                return FAILED;
            }
            (left, at) = (left - now, at + now as u64);
        }
        OK
    }

    fn copy_in(&self, mut at: u64, reader: &mut virtio_queue::Reader<'_>) -> Result<u8, Broken> {
        let mut piece = vec![0; PIECE.min(reader.available_bytes())];
        while reader.available_bytes() > 0 {
            let now = reader.available_bytes().min(piece.len());
            reader.read_exact(&mut piece[..now])?;
            if let Err(error) = self.file.write_all_at(&piece[..now], at) {
                tracing::warn!("writing a disk: {error}");
                return Ok(FAILED);
            }
            at += now as u64;
        }
        Ok(OK)
    }
}

impl Device for Block {
    fn kind(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        HAS_SEGMENTS | HAS_FLUSH | if self.read_only { READ_ONLY } else { 0 }
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn process(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let Some((_, queue)) = queues.woken() else { return Ok(()) };
        queue.each(|chain, memory| self.serve(chain, memory))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Driver;
    use super::*;

    fn disk(bytes: &[u8], read_only: bool) -> Block {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Block::new("/some/where/disk", file, read_only).unwrap()
    }

    fn head(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    #[test]
    fn sectors_are_read_written_and_flushed() {
        let (mut driver, mut disk) = (Driver::new(16), disk(&[vec![1; 512], vec![2; 512], vec![3; 100]].concat(), false));
        assert_eq!(disk.config()[..8], 2u64.to_le_bytes());
        let read = driver.buffers(&[&head(READ, 1)], &[200, 312, 1]);
        let write = driver.buffers(&[&head(WRITE, 0), &[7; 512]], &[1]);
        let flush = driver.buffers(&[&head(FLUSH, 0)], &[1]);
        let name = driver.buffers(&[&head(NAME, 0)], &[20, 1]);
        assert!(driver.process(&mut disk, 0).unwrap());
        let used: Vec<u32> = driver.used().into_iter().map(|(_, len)| len).collect();
        assert_eq!(used, [513, 1, 1, 21]);
        assert_eq!(driver.read(read[1], 200), vec![2; 200]);
        assert_eq!((driver.read(read[3], 1), driver.read(write[2], 1), driver.read(flush[1], 1)), (vec![OK], vec![OK], vec![OK]));
        assert_eq!(driver.read(name[1], 5), b"disk\0");
        let mut sector = [0; 512];
        disk.file.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(sector, [7; 512]);
    }

    #[test]
    fn what_is_not_on_the_disk_fails_alone() {
        for (read_only, kind, sector, len, expected) in [
            (false, READ, 2, 512, FAILED),
            (false, READ, 1, 513, FAILED),
            (false, READ, u64::MAX, 512, FAILED),
            (false, READ, u64::MAX / 512, 512, FAILED),
            (false, 99, 0, 512, UNSUPPORTED),
            (false, NAME, 0, 19, UNSUPPORTED),
            (true, READ, 0, 512, OK),
        ] {
            let (mut driver, mut disk) = (Driver::new(16), disk(&[1; 1024], read_only));
            let addresses = driver.buffers(&[&head(kind, sector)], &[len, 1]);
            driver.process(&mut disk, 0).unwrap();
            assert_eq!(driver.read(addresses[2], 1), [expected], "{kind} {sector} {len}");
        }
        let (mut driver, mut disk) = (Driver::new(16), disk(&[1; 1024], true));
        let addresses = driver.buffers(&[&head(WRITE, 0), &[7; 512]], &[1]);
        driver.process(&mut disk, 0).unwrap();
        assert_eq!(driver.read(addresses[2], 1), [FAILED]);
    }

    #[test]
    fn requests_without_head_or_status_break_the_device() {
        for (readable, writable) in [(&[0; 15][..], &[512, 1][..]), (&head(READ, 0), &[]), (&[], &[1])] {
            let (mut driver, mut disk) = (Driver::new(16), disk(&[1; 1024], false));
            let readable: &[&[u8]] = if readable.is_empty() { &[] } else { &[readable] };
            driver.buffers(readable, writable);
            driver.process(&mut disk, 0).unwrap_err();
        }
    }
}
