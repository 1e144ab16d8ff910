#!/bin/sh
# The table of CIFAR-100 for pairs of the same architecture: plain students, and every method of methods.sh.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"
. scripts/methods.sh

plain "wrn_16_2 wrn_40_1 resnet20 resnet32 resnet8x4 vgg8" "$@"
every_method wrn_40_2 wrn_16_2 "$@"
every_method wrn_40_2 wrn_40_1 "$@"
every_method resnet56 resnet20 "$@"
every_method resnet110 resnet20 "$@"
every_method resnet110 resnet32 "$@"
every_method resnet32x4 resnet8x4 "$@"
every_method vgg13 vgg8 "$@"
