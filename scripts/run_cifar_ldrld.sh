#!/bin/sh
# LDRLD on CIFAR-100. Its weights were published for resnet32x4 -> resnet8x4 only; the other pairs take the same ones,
# for want of others, and could do with a search of their own.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

# the published command
distill resnet32x4 resnet8x4 --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"

# the same architecture
distill resnet56 resnet20 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill resnet110 resnet20 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill resnet110 resnet32 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill wrn_40_2 wrn_16_2 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill wrn_40_2 wrn_40_1 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill vgg13 vgg8 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"

# different ones
distill resnet32x4 ShuffleV1 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill resnet32x4 ShuffleV2 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill wrn_40_2 ShuffleV1 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill vgg13 MobileNetV2 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill ResNet50 MobileNetV2 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
distill ResNet50 vgg8 --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
