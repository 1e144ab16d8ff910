#!/bin/sh
# Train the CIFAR-100 networks from labels: the six teachers and the plain students of the benchmark tables. Extra
# arguments go to every run: sh scripts/run_cifar_vanilla.sh --trial 1. A second call goes on where the first one
# stopped.
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
train wrn_16_2 "$@"
train wrn_40_1 "$@"
train resnet20 "$@"
train resnet32 "$@"
train resnet8x4 "$@"
train vgg8 "$@"
train MobileNetV2 "$@"
train ShuffleV1 "$@"
train ShuffleV2 "$@"
