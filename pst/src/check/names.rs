//! The map of named properties ([MS-PST] 2.4.7): streams, hash buckets, and ids in use.

use super::codes::Code;
use super::content::Content;
use crate::ltp::{NameAudit, audit_names};

/// What [MS-PST] 2.4.7.5 asks for.
const BUCKETS: u32 = 251;

impl Content<'_> {
    pub(super) fn names(&mut self) {
        let NameAudit {
            buckets,
            unlisted,
            stray,
            twice,
            ids,
        } = match audit_names(self.ndb) {
            Ok(Some(audit)) => audit,
            // Whether there must be one is for the messaging checks.
            Ok(None) => return,
            Err(e) => return self.out.failed(Code::NameMap, 0, "name-to-id map", &e),
        };
        if buckets != BUCKETS {
            self.out.add(Code::NameBuckets, 0, || {
                format!("{buckets} hash buckets, not {BUCKETS}")
            });
        }
        for name in unlisted {
            self.out.add(Code::NameBucket, 0, || {
                format!("{name} is not in the hash bucket in which readers look for it")
            });
        }
        if stray > 0 {
            self.out.add(Code::NameStray, 0, || {
                format!("{stray} records of hash buckets are not in the entry stream")
            });
        }
        for (id, name) in twice {
            self.out
                .add(Code::NameTwice, 0, || format!("{id:#06x} and {name}"));
        }
        for (id, place) in &self.named {
            if !ids.contains(id) {
                self.out.add(Code::NameUnknown, 0, || {
                    format!("{id:#06x} has no name; it is used by {place}")
                });
            }
        }
    }
}
