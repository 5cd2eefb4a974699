//! Where in the tree of nodes and subnodes the check is: written out only when a finding needs it.

use std::fmt;

use crate::Nid;

/// A node, and the subnodes on the way down from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Place(pub Vec<Nid>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, nid) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            write!(f, "{nid}")?;
        }
        Ok(())
    }
}
