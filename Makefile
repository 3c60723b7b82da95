# make demo   set everything up and watch a device being updated, rolled back and refusing bad images
# make test   set everything up; lint, types, tests, coverage
# make lint   format and lint rules, mypy, pyright
# make test-sbc  a virtual board updates its own system: U-Boot, a kernel and a watchdog under QEMU; some minutes
# make proof  every pair of power cuts on every sector map, whole lives in every place, and many cuts at random: some minutes
# make soak   a million runs with three to seven power cuts
# make page   fetch from npm what the updater page needs to reach a broker, and what its tests need
# make sbom   the bill of materials, dist/mgota.cdx.json
# make bench  the benchmarks, ratios side by side
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
PAGE := mgota/page/mqtt.min.js

.PHONY: setup page demo test lint types unit test-sbc proof soak sbom bench clean
setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $@

page: $(PAGE)

# Without `npm` the page's tests say so and skip; .ci/run lets none of them skip.
$(PAGE): page/package.json page/package-lock.json
	cd page && npm ci --ignore-scripts --no-audit --no-fund
	{ printf '/*!\n'; cat page/node_modules/mqtt/LICENSE.md; printf '*/\n'; cat page/node_modules/mqtt/dist/mqtt.min.js; } > $@.new
	mv $@.new $@

demo: setup
	@$(BIN)/mgota demo

test: lint unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright

unit: setup $(if $(shell command -v npm),page)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report= 
	$(BIN)/coverage report --fail-under=90
	$(BIN)/coverage report --include='mgota/core/*' --fail-under=100

test-sbc: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m sbc tests/sbc

proof: setup
	$(BIN)/python tools/proof.py --runs 40000 --least 200000 --seconds 900 --jobs $(JOBS)

soak: setup
	$(BIN)/python tools/proof.py --only random --runs 1000000 --least 1000000 --jobs $(JOBS)

sbom: setup
	$(BIN)/python tools/sbom.py

bench: setup
	$(BIN)/python benchmarks/http_push.py
	$(BIN)/python benchmarks/pull.py --flat 16,256
	$(BIN)/python benchmarks/mqtt.py
	@if [ "$$(id -u)" = 0 ] && losetup --find >/dev/null 2>&1; then $(BIN)/python benchmarks/block_slots.py; \
	else echo 'block_slots: left out, loop devices need root'; fi

clean:
	rm -rf $(VENV) $(PAGE) page/node_modules .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
