//! The header of a packet (virtio 1.2, section 5.10.6).

/// Its length in bytes.
pub const LEN: usize = 44;
/// The host's context id.
pub const HOST: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks for a connection.
    Request,
    /// Grants one.
    Response,
    /// Ends one at once, or refuses it.
    Reset,
    /// Says that nothing more is received, or sent, or both.
    Shutdown,
    /// Carries bytes.
    Data,
    /// Says how much may be sent.
    CreditUpdate,
    /// Asks for that.
    CreditRequest,
}

/// Bits of `flags` of [`Operation::Shutdown`].
pub const NO_RECEIVE: u32 = 1;
/// See [`NO_RECEIVE`].
pub const NO_SEND: u32 = 2;

const OPERATIONS: [(u16, Operation); 7] = [
    (1, Operation::Request),
    (2, Operation::Response),
    (3, Operation::Reset),
    (4, Operation::Shutdown),
    (5, Operation::Data),
    (6, Operation::CreditUpdate),
    (7, Operation::CreditRequest),
];

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Context ids.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// Ports.
    pub from_port: u32,
    /// See `from_port`.
    pub to_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    /// What it is for.
    pub operation: Operation,
    /// Of a shutdown.
    pub flags: u32,
    /// Bytes that the sender's buffer has for the connection.
    pub room: u32,
    /// Bytes that have left this buffer, modulo 2^32.
    pub taken: u32,
}

impl Header {
    /// Reads one; `None` where it is of no known kind.
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        let (_, operation) = OPERATIONS.into_iter().find(|(number, _)| *number == half(30) && half(28) == STREAM)?;
        Some(Self {
            from: long(0),
            to: long(8),
            from_port: word(16),
            to_port: word(20),
            len: word(24),
            operation,
            flags: word(32),
            room: word(36),
            taken: word(40),
        })
    }

    /// As bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let number = OPERATIONS.into_iter().find(|(_, operation)| *operation == self.operation).expect("all are there").0;
        let mut out = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.from.to_le_bytes());
        put(8, &self.to.to_le_bytes());
        put(16, &self.from_port.to_le_bytes());
        put(20, &self.to_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &STREAM.to_le_bytes());
        put(30, &number.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.room.to_le_bytes());
        put(40, &self.taken.to_le_bytes());
        out
    }
}
