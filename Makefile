# The ways to build, try and prove Holdfast. `make` alone lists them.

# Each step fails the target at once, also inside a pipe.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

target_dir := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
binaries := -p holdfast-cli -p holdfast-controller -p holdfast-datanode --bins
# In CI the lock file is the truth; a developer's cargo may complete it.
locked := $(if $(CI),--locked)

.PHONY: help build demo run test bench bench-control bench-failover bench-replication conformance differential fuzz chaos sim mutants kmod vm-test lint audit clean ready-build ready-demo ready-test ready-conformance ready-kmod ready-bench release

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

build: ready-build ## the three release binaries, in target/release
	@$(MAKE) --no-print-directory release

demo: ready-demo ## a cluster on this machine: an image through both nodes, a reservation that outlives the leader
	@$(MAKE) --no-print-directory release
	HOLDFAST_BIN_DIR=$(target_dir)/release tests/demo.sh

run: ready-demo ## a cluster to play with, up until Ctrl-C; prints what to try
	@$(MAKE) --no-print-directory release
	HOLDFAST_BIN_DIR=$(target_dir)/release tests/run.sh

test: ready-test ## lint, then all tests, also those with real processes and initiators
	cargo build --workspace --all-targets $(locked)
	@$(MAKE) --no-print-directory lint
	HOLDFAST_BIN_DIR=$(target_dir)/debug build/test.sh $(locked)
	$(if $(CI),@$(MAKE) --no-print-directory fuzz MINUTES=1)
	$(if $(CI),chaos/mutants.sh --fast)

conformance: ready-conformance ## libiscsi's whole suite against Holdfast and, for comparison, against tgt and istgt (needs root for tgt)
	cargo build $(subst --bins,,$(binaries)) -p holdfast-tests --bins $(locked)
	HOLDFAST_BIN_DIR=$(target_dir)/debug PATH=$$PATH:/usr/sbin:/sbin timeout -k 10 2400 $(target_dir)/debug/holdfast-conformance docs/conformance.md

differential: ready-conformance ## 10,000 random commands to Holdfast and to tgt: every difference has its rule (needs root for tgt)
	cargo build $(subst --bins,,$(binaries)) -p holdfast-tests --bins $(locked)
	HOLDFAST_BIN_DIR=$(target_dir)/debug PATH=$$PATH:/usr/sbin:/sbin timeout -k 10 900 $(target_dir)/debug/holdfast-differential 10000 $(or $(SEED),1)

fuzz: ready-test ## MINUTES=n: every decoder and machine that reads what a peer or a disk says, with libFuzzer, for so many minutes in all
	fuzz/run.sh $$(( $(or $(MINUTES),3) * 60 / $$(ls fuzz/fuzz_targets | wc -l) ))

bench: ready-bench ## Holdfast beside tgt, istgt and the bare network; tables and plots in target/bench (arguments: BENCH="--set full")
	@$(MAKE) --no-print-directory release
	cargo build --release -p holdfast-bench $(locked)
	HOLDFAST_BIN_DIR=$(target_dir)/release $(target_dir)/release/holdfast-bench run --libiscsi --syscalls --out $(target_dir)/bench $(BENCH)

bench-control: ready-build ## the control plane beside one fsync and one round trip, with up to 10,000 volumes; minutes (arguments: BENCH="--quick")
	cargo build --release -p holdfast-controller -p holdfast-bench --bins $(locked)
	mkdir -p $(target_dir)/bench
	$(target_dir)/release/holdfast-bench control --controller $(target_dir)/release/holdfast-controller \
	  --dir $(target_dir)/bench --out $(target_dir)/bench $(BENCH)

bench-failover: ready-test ## how long hosts stand still: planned, kill -9, partition; COUNT=n MINUTES=n (arguments: BENCH="--kind kill"); needs root
	@$(MAKE) --no-print-directory release
	cargo build --release -p holdfast-bench --bins $(locked)
	mkdir -p $(target_dir)/bench
	HOLDFAST_BIN_DIR=$(target_dir)/release PATH=$$PATH:/usr/sbin:/sbin $(target_dir)/release/holdfast-bench failover \
	  --count $(or $(COUNT),100) --minutes $(or $(MINUTES),25) --dir $(target_dir)/bench --out docs/performance $(BENCH)

bench-replication: ready-bench ## writes with 1, 2, 3 copies beside a bare exchange, re-synchronisation, memory; minutes (arguments: BENCH="--quick")
	@$(MAKE) --no-print-directory release
	cargo build --release -p holdfast-bench --bins $(locked)
	HOLDFAST_BIN_DIR=$(target_dir)/release $(target_dir)/release/holdfast-bench replication --out docs/performance $(BENCH)

kmod: ready-kmod ## the kernel module for every kernel whose headers are there
	@for kernel in $$(ls -d /lib/modules/*/build | cut -d/ -f4); do kmod-frontend/build.sh $$kernel; done

vm-test: ready-kmod ready-test ## the kernel module on Debian's kernels, in QEMU
	kmod-frontend/vm/test.sh

chaos: ready-test ## MINUTES=n [SEED=s] [REPLICAS=n] [DATANODES=n]: break a cluster of real processes, and judge what its hosts saw
	@$(MAKE) --no-print-directory release
	HOLDFAST_BIN_DIR=$(target_dir)/release cargo run --release -q -p holdfast-chaos --bin holdfast-chaos $(locked) -- --minutes $(or $(MINUTES),5) \
		$(if $(SEED),--seed $(SEED)) $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(DATANODES),--datanodes $(DATANODES))

sim: ready-test ## SEEDS=n [FIRST=s]: clusters in one thread, each from its seed, judged; every seed can be replayed
	cargo run --release -q -p holdfast-chaos --bin holdfast-sim $(locked) -- --seeds $(or $(SEEDS),5000) --first $(or $(FIRST),1)

mutants: ready-test ## [SEEDS=n]: faults planted one by one into a copy of the tree; each has to be found by the simulation
	chaos/mutants.sh

lint: ready-test ## format, clippy, purity of the cores, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(locked) -- -D warnings
	build/check-pure.sh
	build/check-kernel-tier.sh
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; fi

audit: ## known vulnerabilities in dependencies (needs cargo-deny 0.20 and the network)
	cargo deny check

clean: ## what cargo built; the RocksDB library in its cache stays
	cargo clean

release:
	cargo build --release $(binaries) $(locked)

# What must be there before cargo starts: packages, and RocksDB with the file that tells cargo where it is.
ready-build:
	@build/setup.sh build
	@build/rocksdb.sh
ready-demo:
	@build/setup.sh demo
	@build/rocksdb.sh
ready-kmod:
	@build/setup.sh kmod
ready-bench:
	@build/setup.sh bench
	@build/rocksdb.sh
ready-test:
	@build/setup.sh test
	@build/rocksdb.sh
ready-conformance:
	@build/setup.sh conformance
	@build/rocksdb.sh
