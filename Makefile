# The project's entry points. `make test` and `make demo` install what is missing by themselves.

CARGO ?= cargo
# A PST for the demo (a copy of it is used); without one it is made.
PST ?=
DEMO_ARGS ?=

.PHONY: help bootstrap build demo test lint fmt fmt-check doc deny bench bench-drive bench-smb fuzz check-windows ci

help:
	@echo "make demo [PST=file] [DEMO_ARGS=--keep]   the whole mission, end to end, on this machine"
	@echo "make test      install what is missing, run every test, check what was skipped"
	@echo "make lint      formatting and clippy, warnings denied"
	@echo "make fmt       format the code"
	@echo "make doc       build the documentation, warnings denied"
	@echo "make deny      licences, bans and sources of the dependencies"
	@echo "make bench     run the benchmarks"
	@echo "make bench-drive  the drive beside other FUSE file systems, and its memory"
	@echo "make bench-smb    the drive passing through to smbd, beside other SMB clients"
	@echo "make fuzz      fuzz every target for FUZZ_SECONDS (900) each; needs nightly and cargo-fuzz"
	@echo "make check-windows   build the libraries for Windows; not in ci: it installs a second compiler"
	@echo "make ci        all of lint, deny, test and doc"

bootstrap:
	@scripts/bootstrap.sh

build:
	$(CARGO) build --locked --workspace --bins --examples

# Optimised: the demo moves tens of megabytes and shows times.
demo: bootstrap
	$(CARGO) build --locked --release --bins --examples
	target/release/examples/demo $(if $(PST),--pst "$(PST)") $(DEMO_ARGS)

# Property tests draw the same cases in every run, so that a red run can be run again and a change is blamed for
# what it did. `make test PROPTEST_RNG_SEED=` draws new ones.
test: export PROPTEST_RNG_SEED ?= 20261122

# cargo builds the examples with the tests, which run them. The skip log collects what tests say they did not
# run: the test runner hides it otherwise.
test: bootstrap
	@mkdir -p target
	@rm -f target/skips.log
	scripts/test-scripts.sh
	PSTSYNCD_SKIP_LOG="$(CURDIR)/target/skips.log" $(CARGO) test --locked --workspace
	scripts/check-skips.sh target/skips.log

fmt:
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all -- --check

lint: fmt-check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny:
	$(CARGO) deny --locked check licenses bans sources

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# Needs the machine for itself, and 4 GB in the temporary directory. PSTSYNCD_BENCH_MB and PSTSYNCD_BENCH_LARGE_MB
# set the table's files, PSTSYNCD_BENCH_RUNS its runs.
bench: bootstrap
	$(CARGO) build --locked --release --bins --example mail_writer
	$(CARGO) bench --locked -p pstsyncd --bench core
	$(CARGO) bench --locked -p pstsyncd --bench table

# As root, with 12 GB in PSTSYNCD_BENCH_DIR (the temporary directory); PSTSYNCD_BENCH_ROUNDS sets its rounds.
bench-drive:
	@scripts/bootstrap.sh --bench
	$(CARGO) build --locked --release --bins
	$(CARGO) bench --locked -p pstsyncd --bench drive

# With 2 GB in PSTSYNCD_BENCH_DIR (the temporary directory).
bench-smb: bootstrap
	$(CARGO) build --locked --release --bins
	$(CARGO) bench --locked -p pstsyncd --bench smb

# Needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`; the tests do a short run without.
fuzz:
	scripts/fuzz.sh

check-windows:
	scripts/check-windows.sh

ci: bootstrap
	$(MAKE) lint
	$(MAKE) deny
	$(MAKE) test
	$(MAKE) doc
	@echo "ci: everything passed"
