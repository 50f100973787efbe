# The commands a person needs. `make help` lists them.

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv

.DEFAULT_GOAL := help
.PHONY: help build demo test venv lint sim bench bench-spool clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

build: ## release binaries in target/release
	$(CARGO) build --release --workspace --bins --locked

venv: $(VENV)/.ready ## private virtual environment with ansible-runner and ansible-core

$(VENV)/.ready: tests/requirements.txt
	@echo "== making $(VENV) with ansible-runner and ansible-core"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

demo: build venv ## three nodes on this machine: ping, status, a real Ansible module
	tests/demo.sh

test: venv ## every test that needs no root and no container
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --locked --no-fail-fast
	$(CARGO) sim --nodes 30 --seeds 1..=5

lint: ## format, clippy with warnings as errors, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

sim: ## the simulator as in CI: meshes of 100 nodes with messages and every sort of fault
	$(CARGO) sim --nodes 100 --seeds 1..=20 --jobs 2

bench: build ## benchmarks, each beside its floor
	$(CARGO) build --release -p receptor-plugin --examples --locked
	$(CARGO) bench -p receptor-tests

bench-spool: ## the spool beside embedded stores and a bare file, on the disk of TMPDIR (5 GB)
	$(CARGO) run --release --locked --manifest-path receptord/spool/compare/Cargo.toml

clean: ## everything that was built
	$(CARGO) clean
	rm -rf $(VENV)
