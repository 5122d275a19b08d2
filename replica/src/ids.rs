//! Names of things that the cluster agrees on, as fixed-size values.
//!
//! Invariant: a [`NodeNumber`] is never 0, because 0 means "no node" in the durable records.

use core::fmt;
use core::num::NonZeroU16;

macro_rules! uuid_like {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// From a record's field; `None` unless it has 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<$name> {
                bytes.try_into().ok().map($name)
            }
        }

        impl fmt::Display for $name {
            /// Lower-case hexadecimal with the dashes of a UUID.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (at, byte) in self.0.iter().enumerate() {
                    if matches!(at, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_like! {
    /// A cluster, drawn at its bootstrap.
    ClusterId
}
uuid_like! {
    /// A volume; the identity of its logical unit is made of it.
    VolumeId
}
uuid_like! {
    /// One boot of a machine's kernel: the page cache does not outlive it.
    BootId
}

/// Number of a data node, of its target port group, and its TPGT: 1..=65535, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNumber(NonZeroU16);

impl NodeNumber {
    /// From a record's field; `None` for 0 and for what does not fit.
    pub fn new(number: u32) -> Option<NodeNumber> {
        NonZeroU16::new(u16::try_from(number).ok()?).map(NodeNumber)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// Counts the starts of a data node's process under one name. Ownership is given to one incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn node_number_zero_is_no_node() {
        assert_eq!(NodeNumber::new(0), None);
        assert_eq!(NodeNumber::new(65_536), None);
        assert_eq!(NodeNumber::new(65_535).map(NodeNumber::get), Some(65_535));
    }

    #[test]
    fn ids_print_as_uuids_and_have_sixteen_bytes() {
        let id = VolumeId([0x0f; 16]);
        assert_eq!(id.to_string(), "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f");
        assert_eq!(VolumeId::from_slice(&[0; 15]), None);
        assert_eq!(VolumeId::from_slice(&[7; 16]), Some(VolumeId([7; 16])));
    }
}
