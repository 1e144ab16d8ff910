#!/bin/sh
# Train the CIFAR-100 networks from labels: the six teachers and the plain students of the benchmark tables.
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

# teachers
train wrn_40_2 "$@"
train resnet56 "$@"
train resnet110 "$@"
train resnet32x4 "$@"
train vgg13 "$@"
train ResNet50 "$@"

# students
plain "wrn_16_2 wrn_40_1 resnet20 resnet32 resnet8x4 vgg8 MobileNetV2 ShuffleV1 ShuffleV2" "$@"
