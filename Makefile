# Every target only builds .venv and calls the command line; the words are the flags.
PYTHON ?= python3
BIN := .venv/bin
IVM_MIX := $(BIN)/python -m pipeline
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: annotate submit status evaluate ablation experts bench test test-faults lint clean

annotate: .venv/ready
	@$(if $(DATASET),,echo "ivm-mix: say which dataset: make annotate DATASET=demo" >&2; exit 2)
	@$(IVM_MIX) annotate --dataset "$(DATASET)" $(if $(PROFILE),--profile "$(PROFILE)") $(if $(OUTPUT),--output "$(OUTPUT)") \
		$(if $(LIMIT),--limit "$(LIMIT)") $(if $(ADDRESS),--address "$(ADDRESS)") $(if $(UPDATE),--update) \
		$(if $(FRESH),--fresh) $(if $(RETRY_REJECTS),--retry-rejects) $(if $(DRY_RUN),--dry-run) \
		$(if $(DISCRIMINATOR),--discriminator "$(DISCRIMINATOR)")

submit: .venv/ready
	@$(if $(DATASET),,echo "ivm-mix: say which dataset: make submit DATASET=… ADDRESS=http://head:8265 OUTPUT=s3://…" >&2; exit 2)
	@$(IVM_MIX) submit --dataset "$(DATASET)" $(if $(PROFILE),--profile "$(PROFILE)") $(if $(OUTPUT),--output "$(OUTPUT)") \
		$(if $(LIMIT),--limit "$(LIMIT)") $(if $(ADDRESS),--address "$(ADDRESS)") $(if $(UPDATE),--update) \
		$(if $(FRESH),--fresh) $(if $(RETRY_REJECTS),--retry-rejects) \
		$(if $(DISCRIMINATOR),--discriminator "$(DISCRIMINATOR)") $(if $(PASS_ENV),--pass-env "$(PASS_ENV)") \
		$(if $(SHARED),--shared "$(SHARED)") $(if $(INSTALL),--install) $(if $(STOP),--stop)

status: .venv/ready
	@$(if $(RUN),,echo "ivm-mix: say which run: make status RUN=runs/demo" >&2; exit 2)
	@$(IVM_MIX) status "$(RUN)" $(if $(WATCH),--watch $(filter-out 1,$(WATCH)))

evaluate: .venv/ready
	@$(if $(RUN),,echo "ivm-mix: say which run: make evaluate RUN=runs/demo" >&2; exit 2)
	@$(IVM_MIX) evaluate "$(RUN)" $(if $(COMPARE),--compare)

ablation: .venv/ready
	@$(IVM_MIX) ablation "$(or $(RUN),runs/demo)"

experts: .venv/ready
	@$(IVM_MIX) experts $(if $(CHECK),--check) $(if $(PROFILE),--profile "$(PROFILE)")

bench: .venv/ready
	@$(IVM_MIX) bench --profile "$(or $(PROFILE),$$($(BIN)/python tests/bench_profile.py build/bench))" $(if $(ONLY),--only "$(ONLY)")

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(PYTEST) -m "not faults"

test-faults: .venv/ready
	$(PYTEST) -m faults

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Made anew when the pins change; `ready` is written last, so a broken install is not taken for a good one.
# groundingdino-py asks for an old supervision and a second OpenCV, neither of which its model uses: hence --no-deps.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev,groundingdino]'
	$(PIP) --no-deps groundingdino-py
	@touch $@

clean:
	rm -rf .venv
