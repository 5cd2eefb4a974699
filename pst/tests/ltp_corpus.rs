//! The lists, tables and properties layer on PST files that other programs wrote.

mod support;

use std::sync::Arc;

use pst::ltp::{ClientSig, Heap, NameMap, NodeSource, PropertyContext, TableContext};
use pst::ndb::Ndb;
use support::{UNICODE_FILES, bytes, shared};

/// The whole Unicode files of the corpus.
fn corpus() -> Vec<(&'static str, Arc<Ndb>)> {
    let Some(dir) = shared() else {
        return Vec::new();
    };
    let open = |name: &&'static str| {
        let data = std::fs::read(dir.join("corpus").join(name)).unwrap();
        (*name, Arc::new(Ndb::open(bytes(data)).unwrap()))
    };
    UNICODE_FILES.iter().map(open).collect()
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
