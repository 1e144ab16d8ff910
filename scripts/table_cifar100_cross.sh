#!/bin/sh
# The table of CIFAR-100 for pairs of different architectures: plain students, and every method of methods.sh.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"
. scripts/methods.sh

plain "MobileNetV2 vgg8 ShuffleV1 ShuffleV2" "$@"
every_method vgg13 MobileNetV2 "$@"
every_method ResNet50 MobileNetV2 "$@"
every_method ResNet50 vgg8 "$@"
every_method resnet32x4 ShuffleV1 "$@"
every_method resnet32x4 ShuffleV2 "$@"
every_method wrn_40_2 ShuffleV1 "$@"
