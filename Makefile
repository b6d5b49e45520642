# Every target runs from a fresh clone. What is missing of the machine is
# installed by .ci/setup, which is a no-op when nothing is.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

TIMEOUT  ?= 5m#    of one package's tests
FUZZTIME ?= 60s#   of one fuzz target
SIMSEEDS ?= 1000#  seeded schedules after the fuzz targets
SOAKTIME ?= 8h

step := .ci/step
# Compiles the library and the program, and keeps nothing.
build := go build -buildvcs=false -o /dev/null ./... ./cmd/holdfast/...
# The race detector needs cgo. Without a C compiler the tests run without it, but
# not in CI.
race = $(if $(filter true,$(CI)),-race,$$(test "$$(go env CGO_ENABLED)" = 0 || echo -race))

.PHONY: test check bench fuzz soak cover tools fmt

test:
	@$(step) setup .ci/setup
	@$(step) test go test $(race) -timeout $(TIMEOUT) work

# The isolated step sees the library as its importers do, without the workspace: a
# dependency that only go.work resolves would break them. Building and vetting
# covers every package and test file; of the tests only the quick ones run twice.
check: tools
	@$(step) setup .ci/setup
	@$(step) gofmt bash -ec 'bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "$$bad"; exit 1; }'
	@$(step) vet go vet work
	@$(step) staticcheck .bin/staticcheck work
	@$(step) layers-and-rows go test -count=1 -run '^(TestLayers|TestAcceptance)' .
	@$(step) isolated-build env GOWORK=off go build ./...
	@$(step) isolated-vet env GOWORK=off go vet ./...
	@$(step) isolated-test env GOWORK=off go test -count=1 -run '^(Example|TestLayers|TestAcceptance)' ./...
	@$(step) darwin env GOOS=darwin CGO_ENABLED=0 $(build)
	@$(step) windows env GOOS=windows CGO_ENABLED=0 $(build)
	@$(MAKE) test

# Reports ratios against the peers; never fails on a number.
bench:
	go -C bench run .

fuzz:
	FUZZTIME=$(FUZZTIME) .ci/fuzz
	go test -count=1 -timeout 0 -run '^TestSimulation$$' . -args -simseeds=$(SIMSEEDS)

# The same tests with their counts turned up. Without -race, which `make test` has:
# here the number of operations is the point.
soak:
	@$(step) setup .ci/setup
	HOLDFAST_SOAK=1 go test -count=1 -timeout $(SOAKTIME) work

cover:
	@mkdir -p .tmp
	@go test -timeout $(TIMEOUT) -coverprofile=.tmp/cover.out work
	@go tool cover -func=.tmp/cover.out | tail -n 1

# Rebuilt when tools/go.mod names another version.
tools: .bin/staticcheck
.bin/staticcheck: tools/go.mod tools/go.sum
	GOWORK=off GOBIN=$(CURDIR)/.bin go -C tools install tool
	@touch $@

fmt:
	gofmt -l -w .
