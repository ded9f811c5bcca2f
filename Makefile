# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up .venv first.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One process and one thread a core: two torch threads in each of two jobs would fight over two cores.
export OMP_NUM_THREADS ?= 1
SNAKEMAKE := snakemake --cores all --rerun-incomplete --quiet rules
RESULTS := results
comma := ,
EXPERIMENTS := $(subst $() ,$(comma),$(basename $(notdir $(wildcard config/experiments/*.yaml))))

.PHONY: setup demo smoke test test-quantized test-statistics test-cluster lint ui clean

setup: .venv/ready

# torch first and alone: with it in place, no other package pulls in another build of it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-for-tests: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[auth,bench,dev,postgres,slurm]'
	touch $@

demo: setup
	$(SNAKEMAKE) --config experiments=demo
	@cat $(RESULTS)/demo/tables/main.md
	@echo "Report: $(RESULTS)/demo/report.html    Runs in MLflow: make ui"

smoke: setup
	$(SNAKEMAKE) --config experiments=smoke

# `make test PROCESSES=2` shares the files of tests among so many processes; each takes about 2 GB.
test: .venv/ready-for-tests
	$(BIN)/pytest $(if $(PROCESSES),--numprocesses $(PROCESSES) --dist loadfile)

# bitsandbytes lies apart: where it is installed, each start of PEFT imports it (0.8 s of a processor).
test-quantized: .venv/ready-for-tests
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt --upgrade --target .venv/quantized bitsandbytes
	PYTHONPATH=.venv/quantized $(BIN)/pytest tests/unit/test_quantized.py

# Minutes: every interval and test on thousands of simulated experiments; prints the table of docs/statistics.md.
test-statistics: .venv/ready-for-tests
	$(BIN)/pytest tests/statistics

# Minutes: a real Slurm and a real PostgreSQL on this machine, and what breaks; prints the table of docs/cluster.md.
test-cluster: .venv/ready-for-tests
	[ "$$(id -u)" != 0 ] || { tests/slurm/slurm_loopback.sh install && tests/slurm/postgres_loopback.sh install; }
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/slurm

lint: .venv/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/snakemake --dry-run --quiet all --cores all --config experiments=$(EXPERIMENTS)
	$(BIN)/snakemake --dry-run --quiet all --cores all --profile slurm --config experiments=$(EXPERIMENTS)
	$(BIN)/snakemake --dry-run --quiet all --cores all paper
	$(BIN)/snakemake --dry-run --quiet all --cores all paper --config scale=paper

ui: setup
	$(BIN)/mallowspo server --results $(RESULTS)

clean:
	rm -rf .venv .snakemake build *.egg-info
