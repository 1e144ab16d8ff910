#!/bin/sh
# The tables of LSKD and CTKD on CIFAR-100: plain students, standardised logits and learned temperatures.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

plain "resnet20 resnet32 resnet8x4 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 MobileNetV2 ShuffleV1 ShuffleV2" "$@"
script run_cifar_lskd.sh "$@"
script run_cifar_ctkd.sh "$@"
