#!/bin/sh
# EKD's table on CIFAR-100: plain students, evidential teachers and EKD.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every student. Where the
# data are not in ./data, KD_DATA names their folder, to the teachers as well.
set -eu
. "$(dirname "$0")/common.sh"

plain "resnet20 resnet32 resnet8x4 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 MobileNetV2 ShuffleV2" "$@"
script run_cifar_ekd.sh "$@"
