//! Which partition a name belongs to, as Redis Cluster decides it.

use crate::id::GroupId;

/// Slots of Redis Cluster; a partition is a contiguous range of them.
const SLOTS: u32 = 16_384;

/// The partition (group 1 and up) of a key or topic. `{tag}` pins names together, as in Redis Cluster:
/// if the name holds a `{`, and a `}` after it with something between, only that something is hashed.
///
/// Source: Redis Cluster specification, "Hash tags"; CRC16 is CRC-16/XMODEM.
///
/// # Panics
/// When `partitions` is 0.
#[must_use]
pub fn partition_of(name: &[u8], partitions: u16) -> GroupId {
    let slot = slot_of(name);
    let partition = u32::from(slot) * u32::from(partitions) / SLOTS;
    GroupId(1 + u16::try_from(partition).expect("below the number of partitions"))
}

/// What a topic's dead letters are called, unless QSET DLQ says otherwise: the topic's name and this.
pub const DEAD_LETTERS: &[u8] = b".dlq";

/// The partition of a topic. Dead letters lie in the partition of the topic that they are called after.
#[must_use]
pub fn partition_of_topic(name: &[u8], partitions: u16) -> GroupId {
    partition_of(name.strip_suffix(DEAD_LETTERS).unwrap_or(name), partitions)
}

/// The Redis Cluster slot of a name: 0..16384.
#[must_use]
pub fn slot_of(name: &[u8]) -> u16 {
    crc16(tag_of(name)) & 0x3fff
}

fn tag_of(name: &[u8]) -> &[u8] {
    let Some(open) = name.iter().position(|&b| b == b'{') else { return name };
    let rest = &name[open + 1..];
    match rest.iter().position(|&b| b == b'}') {
        Some(len) if len > 0 => &rest[..len],
        _ => name,
    }
}

const CRC16: [u16; 256] = crc16_table();

#[allow(clippy::cast_possible_truncation, reason = "i stays below 256; TryFrom is not const")]
const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_agree_with_redis_cluster() {
        // `CLUSTER KEYSLOT` of Redis 7.
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{foo}bar"), 12182);
        assert_eq!(slot_of(b"{}foo"), crc16(b"{}foo") & 0x3fff);
    }

    #[test]
    fn every_partition_is_reached_and_none_beyond() {
        let mut seen = [0u32; 17];
        for n in 0..4096 {
            seen[partition_of(format!("key:{n}").as_bytes(), 16).slot()] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&n| n > 128), "{seen:?}");
    }
}
