# The commands a person needs. `make help` lists them.

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv
# Where cargo-deny is put when there is none.
DENY := $(CURDIR)/target/deny

# `make fuzz`: which targets, and seconds for each.
FUZZ_TARGETS ?= $(sort $(basename $(notdir $(wildcard tests/fuzz/targets/*.rs))))
FUZZ_SECONDS ?= 60
FUZZ_DIR := $(CURDIR)/target/fuzz
# What libFuzzer needs to see of a program; as `cargo fuzz -s none` has it, on stable Rust.
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares

.DEFAULT_GOAL := help
.PHONY: help build demo test test-systemd test-skew venv lint deny sim bench bench-systemd bench-spool fuzz clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ## release binaries in target/release
	$(CARGO) build --release --workspace --bins --locked
	$(MAKE) --no-print-directory target/release/THIRD-PARTY-LICENSES

venv: $(VENV)/.ready ## private virtual environment with ansible-runner and ansible-core

$(VENV)/.ready: tests/requirements.txt
	@echo "== making $(VENV) with ansible-runner and ansible-core"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

demo: build venv ## three nodes on this machine: ping, status, a real Ansible module
	tests/demo.sh

test: venv ## every test that needs no root and no container
	$(CARGO) build --workspace --exclude receptor-sim --all-targets --locked
	$(CARGO) test --workspace --exclude receptor-sim --locked --no-fail-fast
	$(CARGO) test -p receptor-sim --profile sim --locked --no-fail-fast
	$(CARGO) sim --nodes 30 --seeds 1..=5

test-systemd: build venv ## packages, and what they and systemd do for each other on booted Debian 12 and 13: root; TESTS="reload test_16" for some
	tests/systemd/tools
	$(MAKE) packages
	RECEPTOR_PACKAGES=$(CURDIR)/target/packages $(PYTHON) tests/systemd/run.py $(TESTS)

test-skew: ## a mesh of two versions: PREVIOUS=DIRECTORY with the programs of the other one (receptord, receptorctl, echo)
	$(CARGO) build --workspace --exclude receptor-sim --bins --locked
	RECEPTOR_PREVIOUS=$(abspath $(PREVIOUS)) $(CARGO) test -p receptor-tests --test skew --locked

lint: ## format, clippy with warnings as errors, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

deny: ## licences, sources and duplicates of what others wrote; builds cargo-deny if there is none (a minute)
	$(CARGO) deny --version >/dev/null 2>&1 || PATH="$(DENY)/bin:$$PATH" $(CARGO) deny --version >/dev/null 2>&1 \
		|| CARGO_PROFILE_DEV_DEBUG=false $(CARGO) install --debug --locked --quiet --root $(DENY) --target-dir $(DENY)/build cargo-deny
	PATH="$(DENY)/bin:$$PATH" $(CARGO) deny --workspace check licenses bans sources

sim: ## the simulator as in CI: meshes of 100 nodes with messages and every sort of fault
	$(CARGO) sim --nodes 100 --seeds 1..=20 --jobs 2

bench: build ## benchmarks, each beside its floor: NUMBERS="N1 N9" for some
	$(CARGO) build --release -p receptor-plugin --examples --locked
	$(CARGO) bench -p receptor-tests -- $(NUMBERS)

bench-systemd: build ## starts by socket on booted Debian 12 and 13, beside what systemd takes: root; ROUNDS=9, MANY=1000000 for a spool of so many, too
	tests/systemd/tools
	$(PYTHON) tests/systemd/bench.py --rounds $(or $(ROUNDS),5) --many $(or $(MANY),0)

bench-spool: ## the spool beside embedded stores and a bare file, on the disk of TMPDIR (5 GB)
	$(CARGO) run --release --locked --manifest-path receptord/spool/compare/Cargo.toml

fuzz: ## libFuzzer on every target: FUZZ_TARGETS="words neighbor" FUZZ_SECONDS=600; what it finds is in target/fuzz
	RECEPTOR_FUZZ=0 RECEPTOR_FUZZ_SEEDS=$(FUZZ_DIR)/seeds $(CARGO) test --quiet -p receptor-fuzz --test replay --locked
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --profile fuzz --target-dir $(FUZZ_DIR) --locked \
		--target $$(rustc -vV | sed -n 's/^host: //p') -p receptor-fuzz --features libfuzzer \
		$(FUZZ_TARGETS:%=--bin fuzz_%)
	failed=; for target in $(FUZZ_TARGETS); do \
		mkdir -p $(FUZZ_DIR)/found/$$target tests/fuzz/corpus/$$target; \
		echo "== $$target"; \
		$(FUZZ_DIR)/*/fuzz/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 \
			-max_len=8192 -print_final_stats=1 -artifact_prefix=$(FUZZ_DIR)/$$target- \
			$(FUZZ_DIR)/found/$$target $(FUZZ_DIR)/seeds/$$target tests/fuzz/corpus/$$target || failed="$$failed $$target"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed; the inputs are in $(FUZZ_DIR)"; exit 1; fi

clean: ## everything that was built
	$(CARGO) clean
	rm -rf $(VENV)

include packaging/install.mk
