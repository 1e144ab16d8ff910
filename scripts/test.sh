#!/bin/sh
# Make the environment where it is missing and run all tests, offline. Arguments go to pytest: sh scripts/test.sh -k kd
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh requirements.txt tests/requirements.txt
# one thread a process: several processes with several threads each would wait for one another
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
