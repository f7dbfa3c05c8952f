# make only wraps tasks.py, which says what each command does: python3 tasks.py --help
# Any Python from 3.8 starts it. The first `python3` may be a version manager's broken shim, so ask each whether it runs.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3 \
	"$$HOME"/.pyenv/versions/3.*/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && echo "$$p" && break; done)
COMMANDS := setup demo test test-all simulate simulate-mesh failsafe experiment bench test-neighbours lint types wheel fuzz fuzz-member fuzz-parsers clean pins

.PHONY: $(COMMANDS)
.NOTPARALLEL:
$(COMMANDS):
	@$(if $(PYTHON),,$(error no Python that runs was found: install the system packages python3 and python3-venv))$(PYTHON) tasks.py $@ $(ARGS)
