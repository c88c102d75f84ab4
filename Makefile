.PHONY: check test

check:  ## style, format and types
	ruff check
	ruff format --check
	rm -rf build/typing && mkdir -p build/typing/nic
	ln -sfn $(CURDIR)/nic/* $(CURDIR)/bitstream $(CURDIR)/models $(CURDIR)/cli build/typing/nic/
	mypy

test:
	pytest
