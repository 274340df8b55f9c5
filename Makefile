# Everything a person or a machine runs here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
# Cargo uses every core by itself; two of them would only wait for each other's lock.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# Tools print in the words that scripts and tests expect.
export LC_ALL := C.UTF-8
export CARGO_TERM_COLOR ?= auto

.PHONY: help demo test torture bench fmt lint check-dependencies

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 28

demo: ## The whole story on this machine: push, deploy, fail, go back (about two minutes after the build)
	@scripts/setup-machine demo
	cargo build --release --locked
	./target/release/refit demo

test: ## Set the machine up, then lints and every test
	@scripts/setup-machine test
	scripts/test-images
	$(MAKE) lint check-dependencies
	scripts/run-tests

ROUNDS ?= 50
SEED ?= $(shell date +%s)

torture: ## Deployments with several faults each, drawn by chance: ROUNDS of them, from SEED on
	@scripts/setup-machine test
	scripts/test-images busybox
	export REFIT_TORTURE_ROUNDS=$(ROUNDS) REFIT_TORTURE_SEED=$(SEED)
	cargo test --locked --test it -- --exact --nocapture matrix::torture::docker_torture

bench: ## Measure against bare Docker, Debian's webhook, and pg_dump by hand
	@scripts/setup-machine bench
	scripts/test-images busybox postgres
	cargo build --release --locked --bins --examples
	benches/run

fmt: ## Format the code
	@cargo fmt

lint: ## Formatting and clippy, with warnings as errors; shellcheck where it is installed
	@cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	if command -v shellcheck >/dev/null; then
		shellcheck scripts/setup-machine scripts/test-images scripts/run-tests .ci/run benches/*.sh
	fi

# One TLS library, and one that needs no C library of the machine it runs on.
check-dependencies:
	@tree=$$(cargo tree --locked --quiet --prefix none --edges normal,build)
	if found=$$(grep -E '^(openssl-sys|native-tls) ' <<<"$$tree"); then
		echo "not wanted in the dependency tree: $$found; \`cargo tree -i\` says who asks for it" >&2
		exit 1
	fi
