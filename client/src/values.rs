//! Words out, values in.

use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use quorate_protocol::reply::Reply;

use crate::error::Error;

/// Adds an option and its value to a command's arguments.
pub(crate) fn option(args: &mut Vec<Bytes>, name: &'static str, value: Option<impl Display>) {
    if let Some(value) = value {
        args.push(Bytes::from_static(name.as_bytes()));
        args.push(Bytes::from(value.to_string()));
    }
}

/// Adds an option of bytes.
pub(crate) fn option_bytes(args: &mut Vec<Bytes>, name: &'static str, value: Option<Bytes>) {
    if let Some(value) = value {
        args.push(Bytes::from_static(name.as_bytes()));
        args.push(value);
    }
}

/// Adds a word if it is wanted.
pub(crate) fn flag(args: &mut Vec<Bytes>, name: &'static str, wanted: bool) {
    if wanted {
        args.push(Bytes::from_static(name.as_bytes()));
    }
}

pub(crate) fn unexpected(reply: Reply) -> Error {
    Error::Unexpected(Box::new(reply))
}

pub(crate) fn int(reply: Reply) -> Result<i64, Error> {
    if let Reply::Int(number) = reply { Ok(number) } else { Err(unexpected(reply)) }
}

pub(crate) fn number(reply: Reply) -> Result<u64, Error> {
    match reply {
        Reply::Int(number) if number >= 0 => Ok(number.unsigned_abs()),
        other => Err(unexpected(other)),
    }
}

pub(crate) fn yes(reply: Reply) -> Result<bool, Error> {
    Ok(int(reply)? == 1)
}

pub(crate) fn done(reply: Reply) -> Result<(), Error> {
    if reply == Reply::OK { Ok(()) } else { Err(unexpected(reply)) }
}

pub(crate) fn bytes(reply: Reply) -> Result<Bytes, Error> {
    if let Reply::Bulk(bytes) = reply { Ok(bytes) } else { Err(unexpected(reply)) }
}

pub(crate) fn text(reply: Reply) -> Result<String, Error> {
    let bytes = bytes(reply)?;
    String::from_utf8(bytes.into()).map_err(|error| unexpected(Reply::Bulk(error.into_bytes().into())))
}

/// Nil is `None`; everything else as `read` says.
pub(crate) fn maybe<T>(
    reply: Reply,
    read: impl FnOnce(Reply) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    if reply == Reply::Nil { Ok(None) } else { read(reply).map(Some) }
}

/// Every element of an array.
pub(crate) fn list<T>(reply: Reply, read: impl Fn(Reply) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    match reply {
        Reply::Array(values) => values.into_iter().map(read).collect(),
        other => Err(unexpected(other)),
    }
}

/// A map's fields by name. Fields that this version does not know are of no account.
pub(crate) struct Fields(BTreeMap<Bytes, Reply>);

impl Fields {
    pub(crate) fn of(reply: Reply) -> Result<Self, Error> {
        let Reply::Map(pairs) = reply else { return Err(unexpected(reply)) };
        let mut fields = BTreeMap::new();
        for (name, value) in pairs {
            fields.insert(bytes(name)?, value);
        }
        Ok(Self(fields))
    }

    /// A field's value; nil when there is no such field.
    pub(crate) fn take(&mut self, name: &str) -> Reply {
        self.0.remove(name.as_bytes()).unwrap_or(Reply::Nil)
    }
}
