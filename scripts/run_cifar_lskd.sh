#!/bin/sh
# LSKD on CIFAR-100: standardised logits under KD, DKD, MLKD and CTKD, with the base temperature and the weight that
# the authors' logs name for the pair. Where a log is missing (MLKD: resnet56 -> resnet20 and wrn_40_2 -> MobileNetV2)
# or does not name DKD's beta, the default is taken.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

# KD
distill resnet56 resnet20 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill resnet110 resnet20 --distill kd --logit-stand --base-temp 4 -r 0.1 -a 12 "$@"
distill resnet110 resnet32 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill resnet32x4 resnet8x4 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill wrn_40_2 wrn_16_2 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill wrn_40_2 wrn_40_1 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill vgg13 vgg8 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 9 "$@"
distill resnet32x4 ShuffleV2 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill resnet32x4 wrn_16_2 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 9 "$@"
distill resnet32x4 wrn_40_2 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 9 "$@"
distill wrn_40_2 resnet8x4 --distill kd --logit-stand --base-temp 2 -r 0.1 -a 9 "$@"
distill wrn_40_2 MobileNetV2 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 9 "$@"
distill vgg13 MobileNetV2 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 9 "$@"
distill ResNet50 MobileNetV2 --distill kd --logit-stand --base-temp 3 -r 0.1 -a 1 "$@"

# DKD, whose two weights are both multiplied by the logs' one
distill resnet56 resnet20 --distill dkd --logit-stand --base-temp 3 -r 1 -a 18 -b 36 "$@"
distill resnet110 resnet20 --distill dkd --logit-stand --base-temp 2 -r 1 -a 15 -b 30 "$@"
distill resnet110 resnet32 --distill dkd --logit-stand --base-temp 2 -r 1 -a 15 -b 30 "$@"
distill resnet32x4 resnet8x4 --distill dkd --logit-stand --base-temp 2 -r 1 -a 9 -b 72 "$@"
distill wrn_40_2 wrn_16_2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 12 -b 24 "$@"
distill wrn_40_2 wrn_40_1 --distill dkd --logit-stand --base-temp 2 -r 1 -a 12 -b 24 "$@"
distill vgg13 vgg8 --distill dkd --logit-stand --base-temp 2 -r 1 -a 15 -b 30 "$@"
distill resnet32x4 ShuffleV2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 9 -b 72 "$@"
distill resnet32x4 wrn_16_2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 9 -b 18 "$@"
distill resnet32x4 wrn_40_2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 9 -b 72 "$@"
distill wrn_40_2 resnet8x4 --distill dkd --logit-stand --base-temp 2 -r 1 -a 18 -b 36 "$@"
distill wrn_40_2 MobileNetV2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 15 -b 30 "$@"
distill vgg13 MobileNetV2 --distill dkd --logit-stand --base-temp 3 -r 1 -a 9 -b 18 "$@"
distill ResNet50 MobileNetV2 --distill dkd --logit-stand --base-temp 2 -r 1 -a 15 -b 30 "$@"

# MLKD
distill resnet56 resnet20 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill resnet110 resnet20 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill resnet110 resnet32 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill resnet32x4 resnet8x4 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill wrn_40_2 wrn_16_2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill wrn_40_2 wrn_40_1 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill vgg13 vgg8 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 6 --learning_rate 0.01 --epochs 480 "$@"
distill resnet32x4 ShuffleV2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 6 --learning_rate 0.01 --epochs 960 "$@"
distill resnet32x4 wrn_16_2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill resnet32x4 wrn_40_2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill wrn_40_2 resnet8x4 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.025 --epochs 480 "$@"
distill wrn_40_2 MobileNetV2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.005 --epochs 480 "$@"
distill vgg13 MobileNetV2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 6 --learning_rate 0.01 --epochs 480 "$@"
distill ResNet50 MobileNetV2 --distill mlkd --logit-stand --base-temp 2 -r 0.1 -a 9 --learning_rate 0.01 --epochs 480 "$@"

# CTKD, which learns the temperature
distill resnet56 resnet20 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet110 resnet20 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet110 resnet32 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet32x4 resnet8x4 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill wrn_40_2 wrn_16_2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill wrn_40_2 wrn_40_1 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill vgg13 vgg8 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet32x4 ShuffleV2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet32x4 wrn_16_2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill resnet32x4 wrn_40_2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill wrn_40_2 resnet8x4 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill wrn_40_2 MobileNetV2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill vgg13 MobileNetV2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
distill ResNet50 MobileNetV2 --distill kd --logit-stand --curriculum_T -r 0.1 -a 9 "$@"
