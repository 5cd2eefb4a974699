//! The lists, tables and properties layer on PST files that other programs wrote.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::ltp::{
    ClientSig, Guid, Heap, NameMap, NameMapEdit, NodeSource, PropBag, PropName, PropertyContext,
    TableContext, TableEdit, build_pc,
};
use pst::ndb::Ndb;
use support::{bytes, readable_files, shared};

/// The whole files of the corpus.
fn corpus() -> Vec<(&'static str, Arc<Ndb>)> {
    let Some(dir) = shared() else {
        return Vec::new();
    };
    let open = |name: &'static str| {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        (name, Arc::new(Ndb::open(bytes(data)).unwrap()))
    };
    readable_files().map(open).collect()
}

/// Every node and subnode of a file that is a heap, with a word about where it is.
fn heaps(ndb: &Arc<Ndb>, visit: &mut dyn FnMut(&str, &NodeSource, ClientSig)) {
    fn walk(
        ndb: &Arc<Ndb>,
        at: &str,
        data: pst::Bid,
        sub: pst::Bid,
        visit: &mut dyn FnMut(&str, &NodeSource, ClientSig),
    ) {
        let source = NodeSource::stored(ndb, data, sub);
        let is_heap = !data.is_none() && {
            let tree = ndb.data(data).unwrap();
            tree.block_count() > 0 && tree.read_block(ndb, 0).unwrap().get(2) == Some(&0xEC)
        };
        if is_heap
            && let Ok(heap) = Heap::open(&source)
            && [ClientSig::PROPERTIES, ClientSig::TABLE].contains(&heap.client_sig())
        {
            visit(at, &source, heap.client_sig());
        }
        for (nid, e) in ndb.subnodes(sub).unwrap() {
            walk(ndb, &format!("{at}/{nid}"), e.bid_data, e.bid_sub, visit);
        }
    }
    for n in ndb.nodes() {
        let n = n.unwrap();
        walk(ndb, &n.nid.to_string(), n.bid_data, n.bid_sub, visit);
    }
}

#[test]
fn every_property_context_and_table_parses() {
    for (name, ndb) in corpus() {
        let (mut pcs, mut props, mut tables, mut rows, mut multi) = (0, 0, 0, 0, 0);
        let mut bad = Vec::new();
        heaps(&ndb, &mut |at, source, sig| {
            if Heap::open(source).unwrap().block_count() > 1 {
                multi += 1;
            }
            if sig == ClientSig::PROPERTIES {
                match PropertyContext::open_source(source).and_then(|pc| pc.bag()) {
                    Ok(bag) => {
                        pcs += 1;
                        props += bag.len();
                    }
                    Err(e) => bad.push(format!("{at}: {e}")),
                }
            } else {
                match TableContext::open_source(source)
                    .and_then(|t| t.rows().collect::<Result<Vec<_>, _>>())
                {
                    Ok(r) => {
                        tables += 1;
                        rows += r.len();
                    }
                    Err(e) => bad.push(format!("{at}: {e}")),
                }
            }
        });
        let names = NameMap::read(&ndb).unwrap();
        println!(
            "{name}: {pcs} property contexts with {props} properties, {tables} tables with \
             {rows} rows, {multi} heaps of several blocks, {} names",
            names.len()
        );
        assert!(bad.is_empty(), "{name}: {bad:#?}");
        assert!(pcs > 0 && tables > 0);
    }
}

/// The rows of a table, each as id, version and properties.
fn rows(source: &NodeSource) -> Vec<(u32, u32, PropBag)> {
    let t = TableContext::open_source(source).unwrap();
    t.rows()
        .map(|r| r.map(|r| (r.id, r.version, r.props)).unwrap())
        .collect()
}

#[test]
fn what_is_read_builds_the_same_again() {
    for (name, ndb) in corpus() {
        let (mut pcs, mut tables) = (0, 0);
        heaps(&ndb, &mut |at, source, sig| {
            if sig == ClientSig::PROPERTIES {
                let bag = PropertyContext::open_source(source).unwrap().bag().unwrap();
                let built = NodeSource::built(build_pc(&bag, None).unwrap());
                let again = PropertyContext::open_source(&built).unwrap().bag().unwrap();
                assert!(bag.same_content(&again).unwrap(), "{name} {at}");
                pcs += 1;
            } else {
                let edit = TableEdit::open_source(source).unwrap();
                let built = NodeSource::built(edit.build(None).unwrap());
                let (before, after) = (rows(source), rows(&built));
                assert_eq!(before.len(), after.len(), "{name} {at}");
                for (a, b) in before.iter().zip(&after) {
                    assert_eq!((a.0, a.1), (b.0, b.1), "{name} {at}");
                    assert!(
                        a.2.same_content(&b.2).unwrap(),
                        "{name} {at} row {:#x}",
                        a.0
                    );
                }
                let table = TableContext::open_source(&built).unwrap();
                assert_eq!(table.layout(), edit.layout(), "{name} {at}");
                tables += 1;
            }
        });
        println!("{name}: {pcs} property contexts and {tables} tables built again");
        assert!(pcs > 0 && tables > 0);
    }
}

#[test]
fn a_name_is_added_to_real_maps_without_moving_others() {
    for (name, ndb) in corpus() {
        let before = NameMap::read(&ndb).unwrap();
        let mut edit = NameMapEdit::open(&ndb).unwrap();
        for (id, n) in before.iter() {
            let known = edit.id(n).unwrap();
            assert!(
                known == id || before.name(known) == Some(n),
                "{name} {id:#x}"
            );
        }
        assert!(!edit.changed(), "{name}: known names are not added again");
        let new = PropName::string(Guid([0x5A; 16]), "a name that no file has");
        let id = edit.id(&new).unwrap();
        assert!(before.name(id).is_none());
        let built = NodeSource::built(edit.build(None).unwrap());
        let after = NameMap::from_source(&built).unwrap();
        assert_eq!(after.len(), before.len() + 1);
        assert_eq!(after.id(&new), Some(id));
        assert!(
            before.iter().all(|(id, n)| after.name(id) == Some(n)),
            "{name}"
        );
    }
}
