# Two commands on a fresh machine with Rust: `make demo` shows it, `make test` tests it.

CARGO ?= cargo
# Where cargo builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)
# memcached is in sbin on some systems.
export PATH := $(PATH):/usr/sbin:/usr/local/sbin

# Where the demo's proxy listens: make demo PORT=12100
PORT ?= 12000

# How long `make soak` runs random faults on real servers, over its two tests; and how many seeds of
# the simulation for each profile: make soak MINUTES=600 SEEDS=1000000
MINUTES ?= 60
SEEDS ?= 100000

# A memcached built with --enable-proxy, to compare with:
# make bench MEMCACHED_PROXY=/opt/memcached/bin/memcached
MEMCACHED_PROXY ?=

# More flags of the benchmark (target/release/examples/bench --help lists them):
# make bench BENCH='--only pipelined'
BENCH ?=

# The same tests either way, except documentation tests, which nextest (.config/nextest.toml) does
# not run.
RUN_TESTS = $(CARGO) $(if $(shell $(CARGO) nextest --version 2>/dev/null),nextest run,test) --locked

.DEFAULT_GOAL := help
.PHONY: help demo picture test test-clients bench soak check fmt build deb test-deb

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the daemon: target/release/resilver
	$(CARGO) build --release --locked

demo: ## Watch a cluster lose a node and heal, with live figures
	@scripts/need-memcached
	$(CARGO) build --release --locked --bin resilver --example demo
	@$(CARGO) run --quiet --release --locked --example demo -- --port $(PORT) $(TARGET)/release/resilver

picture: ## Record the demo anew: docs/demo.svg, the picture in README.md
	@scripts/need-memcached
	$(CARGO) build --release --locked --bin resilver --example demo
	@scripts/record 'make demo' docs/demo.svg $(TARGET)/release/examples/demo --port $(PORT) $(TARGET)/release/resilver

test: ## Run every test, on real memcached servers too
	@scripts/need-memcached
	@scripts/need-etcd
	@scripts/need-network
	$(RUN_TESTS)
	$(CARGO) test --locked --doc
	RESILVER_TEST_IO_URING=off $(RUN_TESTS) --test it -- protocol:: failover::

# Which suites: make test-clients SUITES='"memccapable text" php'
SUITES ?=

test-clients: ## Client suites from elsewhere (pip, npm, PHP, libmemcached) beside memcached's own results, also in faults
	$(CARGO) build --locked
	@scripts/test-clients $(SUITES)

bench: ## Measure resilver, other proxies and memcached side by side (10 minutes or less)
	@scripts/need-memcached
	@scripts/need-bench
	$(CARGO) build --release --locked --bin resilver --example bench
	@$(TARGET)/release/examples/bench $(if $(CARGO_TARGET_DIR),--resilver $(TARGET)/release/resilver) $(if $(MEMCACHED_PROXY),--memcached-proxy $(MEMCACHED_PROXY)) $(BENCH)

deb: build ## A Debian package: target/resilver_VERSION_ARCHITECTURE.deb
	@scripts/deb $(TARGET)/release/resilver $(TARGET)

test-deb: deb ## Install, use, boot, remove and purge it on a root that is thrown away (for root)
	@scripts/need-memcached
	@scripts/need-systemd
	@scripts/test-deb $(TARGET)/resilver_*.deb

soak: ## SEEDS seeds of the simulation (100000), then random faults on real servers for MINUTES (60)
	@scripts/need-memcached
	@scripts/need-etcd
	RESILVER_WALK=all $(CARGO) test --locked --lib coord::authority::walk -- --nocapture
	RESILVER_SIM_SEEDS=$(SEEDS) $(CARGO) test --locked --lib simulation::tests::seeds -- --nocapture
	RESILVER_TEST_SECONDS=$$(( $(MINUTES) * 30 )) $(CARGO) test --locked --test it -- chaos:: fleet::whatever --nocapture --test-threads 1

check: ## Format, lints, documentation, dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	@scripts/need-cargo-deny
	$(CARGO) deny --locked check bans licenses sources

fmt: ## Format the code
	$(CARGO) fmt
