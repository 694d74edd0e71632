//! The one binary notation for everything that nodes store or tell each other.
//!
//! Charter: logged commands, peer messages and the records of state containers are all written by
//! `put` and read by `take`. Client frames (`frame.rs`) and RESP (`resp.rs`) have notations of their own.
//!
//! Invariant: `take(put(x)) == x`, and `take` never allocates more than the input it was given allows.
//! A length is checked against what is left before anything is reserved.
//!
//! Notation: integers little-endian and fixed-width; `bool` one byte, 0 or 1; `Bytes` and `String` a `u32`
//! length and the bytes; `Option` a byte, 0 or 1, then the value; `Vec` a `u32` count, then the elements;
//! a struct its fields in order; an enum a `u8` tag, then the variant's fields. Tags are never reused.

use bytes::Bytes;

/// Bytes that are not what this version of the notation can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "malformed bytes: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A value that has a place in the notation.
pub trait Wire: Sized {
    /// Appends the value to `out`.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads one value from the front of `input`. Byte strings share `input`'s memory.
    ///
    /// # Errors
    /// `Malformed` when the bytes end early or hold a tag or value that this version does not know.
    fn take(input: &mut Bytes) -> Result<Self, Malformed>;

    /// The value alone, as bytes.
    fn to_wire(&self) -> Bytes {
        let mut out = Vec::new();
        self.put(&mut out);
        out.into()
    }

    /// Reads a value that must fill `input` to its end.
    ///
    /// # Errors
    /// As `take`, and when bytes are left over.
    fn from_wire(mut input: Bytes) -> Result<Self, Malformed> {
        let value = Self::take(&mut input)?;
        if input.is_empty() { Ok(value) } else { Err(Malformed("bytes left over after a value")) }
    }
}

macro_rules! wire_int {
    ($($t:ty)*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut Bytes) -> Result<Self, Malformed> {
                const N: usize = size_of::<$t>();
                let Some(head) = input.first_chunk::<N>() else { return Err(Malformed("integer cut short")) };
                let value = <$t>::from_le_bytes(*head);
                bytes::Buf::advance(input, N);
                Ok(value)
            }
        }
    )*};
}
wire_int!(u8 u16 u32 u64 u128 i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("boolean is neither 0 nor 1")),
        }
    }
}

impl Wire for () {
    fn put(&self, _: &mut Vec<u8>) {}
    fn take(_: &mut Bytes) -> Result<Self, Malformed> {
        Ok(())
    }
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    u32::try_from(len).expect("limits.rs keeps every length far below 4 GiB").put(out);
}

impl Wire for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self);
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        let len = u32::take(input)? as usize;
        if len > input.len() {
            return Err(Malformed("byte string cut short"));
        }
        Ok(input.split_to(len))
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        let bytes = Bytes::take(input)?;
        String::from_utf8(bytes.into()).map_err(|_| Malformed("text is not UTF-8"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        Ok(if bool::take(input)? { Some(T::take(input)?) } else { None })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        for value in self {
            value.put(out);
        }
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        let count = u32::take(input)? as usize;
        // No element is smaller than a byte, so a count above the rest is a lie; growth is by use.
        if count > input.len() {
            return Err(Malformed("more elements announced than bytes are left"));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(T::take(input)?);
        }
        Ok(values)
    }
}

impl<T: Wire> Wire for Box<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (**self).put(out);
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Box::new(T::take(input)?))
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        Ok((A::take(input)?, B::take(input)?))
    }
}

/// Declares a struct and its notation: the fields in order.
#[macro_export]
macro_rules! wire_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let _ = &out;
                $($crate::wire::Wire::put(&self.$field, out);)*
            }
            fn take(input: &mut bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                let _ = &input;
                Ok(Self { $($field: $crate::wire::Wire::take(input)?,)* })
            }
        }
    };
}

/// Declares a newtype over something that has a notation.
#[macro_export]
macro_rules! wire_newtype {
    ($(#[$meta:meta])* pub struct $name:ident(pub $ty:ty);) => {
        $(#[$meta])*
        pub struct $name(pub $ty);
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $crate::wire::Wire::put(&self.0, out);
            }
            fn take(input: &mut bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                Ok(Self($crate::wire::Wire::take(input)?))
            }
        }
    };
}

/// Declares an enum and its notation: a one-byte tag, then the variant's payload
/// (`Variant = tag` or `Variant(payload: Payload) = tag`).
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$vmeta:meta])* $variant:ident $(($payload:ident : $ty:ty))? = $tag:literal,)*
    }) => {
        $(#[$meta])*
        pub enum $name { $($(#[$vmeta])* $variant $(($ty))?,)* }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $(($payload))? => {
                        out.push($tag);
                        $($crate::wire::Wire::put($payload, out);)?
                    })*
                }
            }
            fn take(input: &mut bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                match <u8 as $crate::wire::Wire>::take(input)? {
                    $($tag => Ok(Self::$variant $((<$ty as $crate::wire::Wire>::take(input)?))?),)*
                    _ => Err($crate::wire::Malformed(concat!("unknown tag of ", stringify!($name)))),
                }
            }
        }
    };
}
