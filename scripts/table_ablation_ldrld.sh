#!/bin/sh
# LDRLD's ablation on CIFAR-100, resnet32x4 -> resnet8x4: one thing at a time is other than published.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

ablate() {
    distill resnet32x4 resnet8x4 --distill ldrld -r 1.0 "$@"
}

plain "resnet8x4" "$@"

# the whole, its parts, and all pairs with one weight
ablate -a 10.5 -b 7.0 --kd_T 4 "$@"
ablate -a 10.5 -b 0 --kd_T 4 "$@"
ablate -a 0 -b 7.0 --kd_T 4 "$@"
ablate -a 10.5 -b 7.0 --kd_T 4 --no-adw "$@"

# number of classes
ablate -a 10.5 -b 7.0 --kd_T 4 --k 3 "$@"
ablate -a 10.5 -b 7.0 --kd_T 4 --k 5 "$@"
ablate -a 10.5 -b 7.0 --kd_T 4 --k 9 "$@"
ablate -a 10.5 -b 7.0 --kd_T 4 --k 11 "$@"

# temperature
ablate -a 10.5 -b 7.0 --kd_T 2 "$@"
ablate -a 10.5 -b 7.0 --kd_T 3 "$@"
ablate -a 10.5 -b 7.0 --kd_T 5 "$@"
ablate -a 10.5 -b 7.0 --kd_T 6 "$@"
