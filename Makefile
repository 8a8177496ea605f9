# Each target installs what it needs first (Debian 12 or Ubuntu 24.04, with a Rust toolchain).
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop build test bench chaos chaos-steps simulate cluster-demo mixed-versions check demo-check guest-check packages packages-check packages-twice rpm-check e2e ansible-check

LAB := tests/lab

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a VM on this machine, from nothing (IMAGE=path-or-URL for an image of your own)
	@$(LAB)/demo.sh up

demo-stop: ## remove every trace of the demo
	@$(LAB)/demo.sh stop

build: ## the programs, optimised, in target/release
	@$(LAB)/install-deps.sh build
	cargo build --locked --release --bin kring --bin kring-controller --bin kring-agent --bin kring-sim

test: ## all tests (ARGS="-p kring-agent network" for some of them)
	@$(LAB)/install-deps.sh build run guest test
	@$(LAB)/run-tests.sh $(ARGS)

check: ## formatting, lints, and licences and advisories of dependencies
	@$(LAB)/install-deps.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if ! cargo deny --version >/dev/null 2>&1; then \
		echo "cargo-deny is not installed: licences and advisories were not checked"; \
	else \
		cargo deny --locked --config .deny.toml check bans licenses sources && \
		if cargo deny --config .deny.toml fetch db >/dev/null 2>&1; then cargo deny --locked --config .deny.toml check advisories; \
		else echo "the advisory database cannot be reached: advisories were not checked"; fi; \
	fi

packages: ## deb and rpm of controller, agent, command line and simulated hosts, in target/packages-out (ARGS="--quick --deb")
	@$(LAB)/install-deps.sh packages
	packaging/build.sh $(ARGS)

packages-check: ## packages of a quick build on a booted machine: install, a VM, upgrade, remove, purge
	@$(LAB)/install-deps.sh debs lint machine guest
	$(LAB)/packages-check.sh
	@KRING_PACKAGES_BUILT=1 $(LAB)/rpm-check.sh --if-possible

rpm-check: ## the rpms of a quick build: linted, and installed, upgraded and removed on a booted machine
	@$(LAB)/install-deps.sh packages rpms machine guest
	$(LAB)/rpm-check.sh

packages-twice: ## two builds of the last commit at different places, compared (ARGS=--unoptimised: sooner)
	@$(LAB)/install-deps.sh packages
	$(LAB)/packages-twice.sh $(ARGS)

e2e: ## a cluster of booted machines, from our packages by our playbook: VMs, faults, upgrade, removal
	@$(LAB)/install-deps.sh debs machine guest ansible
	$(LAB)/e2e.sh

ansible-check: ## lint the playbook
	@$(LAB)/install-deps.sh ansible
	cd ansible && ansible-lint

bench: ## figures of what is shipped (NAME=bus for one of them, DATABASE=postgres; then in target/bench as JSON)
	@$(LAB)/install-deps.sh build run guest test
	@DATABASE=$(DATABASE) $(LAB)/bench.sh $(NAME)

chaos: ## faults at random under load, with three controllers (SEED=1 RUNS=10 FLEETS=1; a seed that failed is named)
	@$(LAB)/install-deps.sh build run test
	cargo build --locked --bin kring-controller --bin kring-chaos
	@$${CARGO_TARGET_DIR:-target}/debug/kring-chaos --seed $(or $(SEED),1) --runs $(or $(RUNS),10) --fleets $(or $(FLEETS),1)

chaos-steps: ## each fault at each moment of each job, with three controllers (FLEETS=1)
	@$(LAB)/install-deps.sh build run test
	cargo build --locked --bin kring-controller --bin kring-chaos
	@$${CARGO_TARGET_DIR:-target}/debug/kring-chaos --steps --fleets $(or $(FLEETS),1)

simulate: ## controllers under fault with simulated time, one run for each seed (SEED=1 RUNS=5000; RUNS=1 tells what happens)
	@$(LAB)/install-deps.sh build
	cargo build --locked --bin kring-simulate
	@$${CARGO_TARGET_DIR:-target}/debug/kring-simulate --seed $(or $(SEED),1) --runs $(or $(RUNS),5000)

cluster-demo: ## three controllers on this machine, killed under load, and what happens
	@$(LAB)/install-deps.sh build run test
	cargo build --locked --bin kring-controller --bin kring-cluster-demo
	@$${CARGO_TARGET_DIR:-target}/debug/kring-cluster-demo

mixed-versions: ## an older version's controllers beside this one's, upgraded and taken back under load (REV=tag-or-commit)
	@$(LAB)/install-deps.sh build run test
	$(LAB)/mixed-versions.sh $(REV)

demo-check: ## play the demo twice, killed at several moments, and see that it leaves nothing
	@$(LAB)/install-deps.sh build run guest
	$(LAB)/demo-check.sh

guest-check: ## boot the test guest by BIOS and by UEFI and look at all that it does
	@$(LAB)/install-deps.sh run guest
	$(LAB)/guest/check.sh "$$($(LAB)/guest/build.sh)"
	$(LAB)/guest/check.sh --uefi "$$($(LAB)/guest/build.sh --uefi)"
