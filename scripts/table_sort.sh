#!/bin/sh
# SortKD's table on CIFAR-100: plain students, KD and DKD with and without sorted logits.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

plain "resnet20 resnet32 resnet8x4 wrn_16_2 wrn_40_1 vgg8 MobileNetV2 ShuffleV1 ShuffleV2" "$@"
script run_cifar_sort.sh "$@"
