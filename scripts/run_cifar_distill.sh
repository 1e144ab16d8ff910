#!/bin/sh
# Every method on CIFAR-100, resnet32x4 -> resnet8x4, with the published weights (methods.sh).
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"
. scripts/methods.sh

every_method resnet32x4 resnet8x4 "$@"
