# `make demo` and `make test` do all of the set-up themselves, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Pinned, pip takes a CPU build of torch; see constraints.txt.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# What the tests' real parts need: a broker, PortAudio with a sound server that needs no hardware, systemd's own checker,
# a browser, a balancer, and what tells the recipe's voices how English is said.
TEST_PACKAGES := mosquitto mosquitto-clients curl libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins systemd openssl \
	chromium espeak-ng haproxy

.PHONY: help demo run cluster test check fuzz audit docs format clean
help:
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

demo: $(VENV)/.run ## a recording becomes live text through the real daemon
	$(BIN)/python -m bench.demo

run: $(VENV)/.run ## the service, with config/whisperd.yaml
	$(BIN)/whisperd run -c config/whisperd.yaml

cluster: $(VENV)/.run ## a Ray cluster on this machine, with the engines of config/serve.yaml (docs/scale.md)
	$(PIP) -e '.[ray]'
	$(BIN)/ray status >/dev/null 2>&1 || RAY_worker_niceness=0 $(BIN)/ray start --head --disable-usage-stats
	$(BIN)/serve deploy config/serve.yaml

# Three tests at a time keep two cores busy, for many of them wait. One thread each: more would spin while others have the
# cores.
test: system-packages $(VENV)/.test ## ruff, mypy, and every test
	$(MAKE) check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile

check: $(VENV)/.test ## ruff, mypy --strict, the layering rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py

# A property may take its time here, and goes on where the last run failed (.hypothesis/).
fuzz: $(VENV)/.test ## properties, wires, settings and audio, with random inputs that are new in each run
	$(BIN)/pytest -m hypothesis --hypothesis-profile free --timeout 1800
	$(BIN)/python -m tests.fuzz

audit: $(VENV)/.test ## are the libraries those that are pinned, undamaged, and without known weaknesses?
	-$(PIP) 'pip-audit>=2.7' # without the network it says what it could not look up
	$(BIN)/python -m tests.audit

docs: $(VENV)/.run ## write the pages that follow from the code anew
	$(BIN)/python docs/generate.py

format: $(VENV)/.test ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[demo]'
	touch $@

# Some stock clients ask for other versions than the service runs with: they get a folder of their own.
CLIENTS := tests/daemon/dialects/clients.txt
$(VENV)/.test: $(VENV)/.run $(CLIENTS)
	$(PIP) -e '.[mic,zeroconf,ray,distill,voices,test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/clients -r $(CLIENTS)
	touch $@

.PHONY: system-packages
system-packages:
	@sh tests/system-packages.sh $(TEST_PACKAGES)

clean: ## forget the virtual environment and the caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
