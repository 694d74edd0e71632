//! What the arguments of commands on keys mean, in Redis' rules and words.

use bytes::Bytes;

use super::parse::{Parsed, connection, op};
use super::words::{Words, shown};
use super::{ConnAsk, failure};
use crate::limits::{MANY_MAX, NAME_MAX, SCAN_MAX, VALUE_MAX};
use crate::op::{
    Append, Cursor, Expire, ExpireAt, ExpireTime, Expiry, Fence, FencedSet, FillV, GetEx, GetRange, Incr,
    MSet, Moment, Only, Op, Scan, Set, SetBack, SetRange, Ttl, When,
};
use crate::reply::{Code, Failure};

/// Times from here on are refused: far beyond any year that a clock shows, far below an overflow.
const TIME_MAX: i64 = 1 << 50;

pub(super) fn cache_info(words: &mut Words<'_>) -> Parsed {
    op(Op::CacheInfo(words.name("key")?))
}

pub(super) fn get(words: &mut Words<'_>) -> Parsed {
    op(Op::Get(words.name("key")?))
}

pub(super) fn get_v(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    let (mut fill, mut seen) = (None, 0);
    while words.option(&["FILL"], &mut seen)?.is_some() {
        fill = Some(words.millis("FILL", 1)?);
    }
    op(match fill {
        Some(ms) => Op::FillV(FillV { key, ms }),
        None => Op::GetV(key),
    })
}

fn plain_set(key: Bytes, value: Bytes) -> Set {
    Set { key, value, when: When::Always, expiry: Expiry::Never, get: false }
}

pub(super) fn set(words: &mut Words<'_>) -> Parsed {
    const OPTIONS: &[&str] =
        &["NX", "XX", "IFVER", "EX", "PX", "EXAT", "PXAT", "KEEPTTL", "GET", "WRITEBACK", "FENCE"];
    let key = words.name("key")?;
    let mut set = plain_set(key, words.value("value")?);
    let (mut write_back, mut fence) = (false, None);
    let mut seen = 0;
    while let Some(option) = words.option(OPTIONS, &mut seen)? {
        match option {
            "NX" | "XX" | "IFVER" if set.when != When::Always => {
                return Err(words.syntax("NX, XX and IFVER exclude each other"));
            }
            "NX" => set.when = When::Absent,
            "XX" => set.when = When::Present,
            "IFVER" => set.when = When::Version(words.number("IFVER", 0, i64::MAX as u64)?),
            "GET" => set.get = true,
            "WRITEBACK" => write_back = true,
            "FENCE" => {
                let lock = words.name("lock")?;
                fence = Some(Fence { lock, token: words.number("FENCE", 1, i64::MAX as u64)?, watch: None });
            }
            _ if set.expiry != Expiry::Never => {
                return Err(words.syntax("EX, PX, EXAT, PXAT and KEEPTTL exclude each other"));
            }
            "KEEPTTL" => set.expiry = Expiry::Keep,
            option => set.expiry = deadline(words, option)?,
        }
    }
    match (set.when, fence) {
        // Whether it holds is known where the key is decided, and that is not asked before the answer.
        (When::Absent | When::Version(_), _) | (_, Some(_)) if write_back => {
            Err(words.syntax("WRITEBACK goes with none of NX, IFVER and FENCE; send SET without it"))
        }
        (_, Some(fence)) => op(Op::FencedSet(FencedSet { fence, set })),
        (When::Always, None) if write_back && set.expiry == Expiry::Never && !set.get => {
            op(Op::SetBack(SetBack { key: set.key, value: set.value }))
        }
        _ => op(Op::Set(set)),
    }
}

/// What EX, PX, EXAT or PXAT say.
fn deadline(words: &mut Words<'_>, option: &str) -> Result<Expiry, Failure> {
    let unit = if option.starts_with('E') { 1000 } else { 1 };
    let ms = positive_time(words, unit)?;
    Ok(if option.ends_with("AT") { Expiry::At(Moment::Unix(ms)) } else { Expiry::After(ms) })
}

fn positive_time(words: &mut Words<'_>, unit: i64) -> Result<u64, Failure> {
    let ms = time(words, unit)?;
    u64::try_from(ms).ok().filter(|&ms| ms > 0).ok_or_else(|| invalid_time(words))
}

fn time(words: &mut Words<'_>, unit: i64) -> Result<i64, Failure> {
    let ms = words.integer()?.checked_mul(unit).filter(|&ms| ms < TIME_MAX);
    ms.ok_or_else(|| invalid_time(words))
}

fn invalid_time(words: &Words<'_>) -> Failure {
    let name = words.spec.name.to_ascii_lowercase();
    failure(Code::Err, format!("invalid expire time in '{name}' command"))
}

fn set_for(words: &mut Words<'_>, unit: i64) -> Parsed {
    let key = words.name("key")?;
    let expiry = Expiry::After(positive_time(words, unit)?);
    op(Op::Set(Set { expiry, ..plain_set(key, words.value("value")?) }))
}

pub(super) fn set_ex(words: &mut Words<'_>) -> Parsed {
    set_for(words, 1000)
}

pub(super) fn pset_ex(words: &mut Words<'_>) -> Parsed {
    set_for(words, 1)
}

pub(super) fn get_set(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    op(Op::Set(Set { get: true, ..plain_set(key, words.value("value")?) }))
}

pub(super) fn get_del(words: &mut Words<'_>) -> Parsed {
    op(Op::GetDel(words.name("key")?))
}

pub(super) fn get_ex(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    let mut expiry = None;
    let mut seen = 0;
    while let Some(option) = words.option(&["EX", "PX", "EXAT", "PXAT", "PERSIST"], &mut seen)? {
        if expiry.is_some() {
            return Err(words.syntax("EX, PX, EXAT, PXAT and PERSIST exclude each other"));
        }
        expiry = Some(if option == "PERSIST" { Expiry::Never } else { deadline(words, option)? });
    }
    op(match expiry {
        Some(expiry) => Op::GetEx(GetEx { key, expiry }),
        None => Op::Get(key),
    })
}

pub(super) fn append(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    op(Op::Append(Append { key, value: words.value("value")? }))
}

pub(super) fn set_range(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    let offset = words.integer()?;
    let offset = u64::try_from(offset).map_err(|_| failure(Code::Err, "offset is out of range"))?;
    let value = words.value("value")?;
    if !value.is_empty() && offset.saturating_add(value.len() as u64) > VALUE_MAX as u64 {
        return Err(failure(Code::Err, "string exceeds maximum allowed size (proto-max-bulk-len)"));
    }
    op(Op::SetRange(SetRange { key, offset, value }))
}

pub(super) fn get_range(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    op(Op::GetRange(GetRange { key, start: words.integer()?, end: words.integer()? }))
}

pub(super) fn strlen(words: &mut Words<'_>) -> Parsed {
    op(Op::Strlen(words.name("key")?))
}

pub(super) fn m_get(words: &mut Words<'_>) -> Parsed {
    op(Op::MGet(words.names("key")?))
}

fn pairs(words: &mut Words<'_>) -> Result<Vec<(Bytes, Bytes)>, Failure> {
    if !words.rest.len().is_multiple_of(2) {
        let name = words.spec.name.to_ascii_lowercase();
        let text = format!("wrong number of arguments for '{name}' command; usage: {}", words.spec.syntax);
        return Err(failure(Code::Err, text));
    }
    if words.rest.len() > 2 * MANY_MAX {
        let text = format!(
            "{} keys in one command, at most {MANY_MAX} are taken; send several",
            words.rest.len() / 2
        );
        return Err(failure(Code::TooBig, text));
    }
    let mut pairs = Vec::new();
    while !words.rest.is_empty() {
        pairs.push((words.name("key")?, words.value("value")?));
    }
    Ok(pairs)
}

pub(super) fn m_set(words: &mut Words<'_>) -> Parsed {
    op(Op::MSet(MSet { pairs: pairs(words)?, absent: false }))
}

pub(super) fn m_set_nx(words: &mut Words<'_>) -> Parsed {
    op(Op::MSet(MSet { pairs: pairs(words)?, absent: true }))
}

pub(super) fn set_nx(words: &mut Words<'_>) -> Parsed {
    m_set_nx(words)
}

pub(super) fn del(words: &mut Words<'_>) -> Parsed {
    op(Op::Del(words.names("key")?))
}

pub(super) fn exists(words: &mut Words<'_>) -> Parsed {
    op(Op::Exists(words.names("key")?))
}

pub(super) fn key_type(words: &mut Words<'_>) -> Parsed {
    op(Op::Type(words.name("key")?))
}

pub(super) fn incr(words: &mut Words<'_>) -> Parsed {
    op(Op::Incr(Incr { key: words.name("key")?, by: 1 }))
}

pub(super) fn decr(words: &mut Words<'_>) -> Parsed {
    op(Op::Incr(Incr { key: words.name("key")?, by: -1 }))
}

pub(super) fn incr_by(words: &mut Words<'_>) -> Parsed {
    op(Op::Incr(Incr { key: words.name("key")?, by: words.integer()? }))
}

pub(super) fn decr_by(words: &mut Words<'_>) -> Parsed {
    let key = words.name("key")?;
    let by = words.integer()?.checked_neg();
    let by = by.ok_or_else(|| failure(Code::Err, "decrement would overflow"))?;
    op(Op::Incr(Incr { key, by }))
}

/// NX, XX, GT and LT behind an EXPIRE; XX GT is GT, since a key without a deadline has none that is earlier.
fn only(words: &mut Words<'_>) -> Result<Only, Failure> {
    const ONLY: &[&str] = &["NX", "XX", "GT", "LT"];
    let (mut absent, mut present, mut later, mut earlier, mut seen) = (false, false, false, false, 0);
    let known = |word: &&Bytes| ONLY.iter().any(|option| word.eq_ignore_ascii_case(option.as_bytes()));
    if let Some(word) = words.rest.iter().find(|word| !known(word)) {
        let text = format!("Unsupported option {}; NX, XX, GT and LT are", shown(word));
        return Err(failure(Code::Err, text));
    }
    while let Some(option) = words.option(ONLY, &mut seen)? {
        match option {
            "NX" => absent = true,
            "XX" => present = true,
            "GT" => later = true,
            _ => earlier = true,
        }
    }
    let conflict = |text| Err(failure(Code::Err, text));
    Ok(match (absent, present, later, earlier) {
        (true, false, false, false) => Only::Absent,
        (true, ..) => {
            return conflict("NX and XX, GT or LT options at the same time are not compatible");
        }
        (_, _, true, true) => return conflict("GT and LT options at the same time are not compatible"),
        (_, _, true, _) => Only::Later,
        (_, true, _, true) => Only::PresentEarlier,
        (_, _, _, true) => Only::Earlier,
        (_, true, ..) => Only::Present,
        _ => Only::Always,
    })
}

/// The time and the conditions behind it; where both are wrong Redis complains of the conditions.
fn time_and_only(words: &mut Words<'_>, unit: i64) -> Result<(i64, Only), Failure> {
    let mut number = Words::new(words.spec, &words.rest[..1]);
    words.next()?;
    let only = only(words)?;
    Ok((time(&mut number, unit)?, only))
}

fn expire_in(words: &mut Words<'_>, unit: i64) -> Parsed {
    let key = words.name("key")?;
    let (ms, only) = time_and_only(words, unit)?;
    op(Op::Expire(Expire { key, ms, only }))
}

pub(super) fn expire(words: &mut Words<'_>) -> Parsed {
    expire_in(words, 1000)
}

pub(super) fn pexpire(words: &mut Words<'_>) -> Parsed {
    expire_in(words, 1)
}

fn expire_on(words: &mut Words<'_>, unit: i64) -> Parsed {
    let key = words.name("key")?;
    let (ms, only) = time_and_only(words, unit)?;
    let at = Moment::Unix(u64::try_from(ms).unwrap_or(0));
    op(Op::ExpireAt(ExpireAt { key, at, only }))
}

pub(super) fn expire_at(words: &mut Words<'_>) -> Parsed {
    expire_on(words, 1000)
}

pub(super) fn pexpire_at(words: &mut Words<'_>) -> Parsed {
    expire_on(words, 1)
}

pub(super) fn persist(words: &mut Words<'_>) -> Parsed {
    op(Op::Persist(words.name("key")?))
}

pub(super) fn ttl(words: &mut Words<'_>) -> Parsed {
    op(Op::Ttl(Ttl { key: words.name("key")?, millis: false }))
}

pub(super) fn pttl(words: &mut Words<'_>) -> Parsed {
    op(Op::Ttl(Ttl { key: words.name("key")?, millis: true }))
}

pub(super) fn expire_time_of(words: &mut Words<'_>) -> Parsed {
    op(Op::ExpireTime(ExpireTime { key: words.name("key")?, millis: false, epoch: 0 }))
}

pub(super) fn pexpire_time_of(words: &mut Words<'_>) -> Parsed {
    op(Op::ExpireTime(ExpireTime { key: words.name("key")?, millis: true, epoch: 0 }))
}

pub(super) fn db_size(_: &mut Words<'_>) -> Parsed {
    op(Op::DbSize)
}

fn pattern(words: &mut Words<'_>) -> Result<Bytes, Failure> {
    let pattern = words.next()?;
    if pattern.len() > NAME_MAX {
        let text = format!("pattern of {} bytes, at most {NAME_MAX} are taken", pattern.len());
        return Err(failure(Code::TooBig, text));
    }
    Ok(pattern)
}

pub(super) fn keys(words: &mut Words<'_>) -> Parsed {
    op(Op::Keys(pattern(words)?))
}

pub(super) fn scan(words: &mut Words<'_>) -> Parsed {
    let word = words.next()?;
    let cursor = core::str::from_utf8(&word).ok().and_then(|text| text.parse::<u64>().ok());
    let cursor = cursor.filter(|&cursor| Cursor::read(cursor).is_some());
    let cursor = cursor.ok_or_else(|| failure(Code::Err, "invalid cursor"))?;
    let mut scan = Scan { cursor, pattern: None, count: 10, none: false };
    let mut seen = 0;
    while let Some(option) = words.option(&["MATCH", "COUNT", "TYPE"], &mut seen)? {
        match option {
            "MATCH" => scan.pattern = Some(pattern(words)?),
            "COUNT" => {
                let count = u64::try_from(words.integer()?).ok().filter(|&count| count > 0);
                let count = count.ok_or_else(|| words.syntax("COUNT must be at least 1"))?;
                scan.count = u32::try_from(count).unwrap_or(SCAN_MAX).min(SCAN_MAX);
            }
            _ => scan.none = !words.next()?.eq_ignore_ascii_case(b"string"),
        }
    }
    op(Op::Scan(scan))
}

pub(super) fn flush(words: &mut Words<'_>) -> Parsed {
    let mut seen = 0;
    words.option(&["ASYNC", "SYNC"], &mut seen)?;
    op(Op::FlushAll)
}

pub(super) fn multi(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Multi)
}

pub(super) fn exec(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Exec)
}

pub(super) fn discard(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Discard)
}

pub(super) fn watch(words: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Watch(words.names("key")?))
}

pub(super) fn unwatch(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Unwatch)
}
