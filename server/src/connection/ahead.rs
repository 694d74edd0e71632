//! What a connection has asked that is unanswered, as far as a read behind it may be answered by the node itself.
//!
//! Invariant: the commands of a connection to one partition take effect in their order. So a read passes others only if nothing but
//! reads of other partitions is ahead of it. Its answer keeps its place among the answers where they come in order.

use quorate_engine::effect::Want;
use quorate_protocol::limits::PARTITIONS_MAX;
use quorate_protocol::op::partition_of;

const _: () = assert!(PARTITIONS_MAX < 128, "a bit for each");

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// A bit for each partition of which a key is read.
    read: u128,
    /// There is something that is no read of one key.
    other: bool,
}

fn bit(key: &[u8], partitions: u16) -> u128 {
    1 << partition_of(key, partitions).0
}

impl Ahead {
    /// Something is asked.
    pub(super) fn asks(&mut self, want: &Want, partitions: u16) {
        match want {
            Want::Op(op) => match op.line() {
                Some(key) => self.read |= bit(key, partitions),
                None => self.other = true,
            },
            // It is answered already, and waits for its place only.
            Want::Answered(_) => {}
            _ => self.other = true,
        }
    }

    /// Whether a read of a key may pass all of it.
    pub(super) fn lets_pass(&self, key: &[u8], partitions: u16) -> bool {
        !self.other && self.read & bit(key, partitions) == 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_protocol::command::{Command, parse};
    use quorate_protocol::reply::Reply;

    use super::*;

    fn asks(ahead: &mut Ahead, line: &str) {
        let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let Ok(Command::Op(op)) = parse(&words) else { panic!("{line} is an operation") };
        ahead.asks(&Want::Op(op), 16);
    }

    #[test]
    fn a_read_passes_reads_of_other_partitions_only() {
        let other = (0..).map(|n| n.to_string()).find(|key| bit(key.as_bytes(), 16) != bit(b"k", 16));
        let other = other.expect("keys lie in all partitions");
        let mut ahead = Ahead::default();
        assert!(ahead.lets_pass(b"k", 16));
        asks(&mut ahead, &format!("GET {other}"));
        ahead.asks(&Want::Answered(Reply::Nil), 16);
        assert!(ahead.lets_pass(b"k", 16) && !ahead.lets_pass(other.as_bytes(), 16));
        asks(&mut ahead, "GET {k}1");
        assert!(!ahead.lets_pass(b"k", 16));
        for write in ["SET k v", "MGET a b", "LOCK l OWNER o", "PUB t m"] {
            let mut ahead = Ahead::default();
            asks(&mut ahead, write);
            assert!(!ahead.lets_pass(other.as_bytes(), 16), "{write}");
        }
    }
}
