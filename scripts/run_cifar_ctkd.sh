#!/bin/sh
# CTKD on CIFAR-100: KD with a learned temperature, and without, to compare. The settings are the same for every pair.
# Fetch the teachers first: sh scripts/fetch_pretrained_teachers.sh
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

# KD
distill resnet56 resnet20 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet56 resnet20 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill resnet110 resnet20 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet110 resnet20 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill resnet110 resnet32 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet110 resnet32 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill resnet32x4 resnet8x4 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet32x4 resnet8x4 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill wrn_40_2 wrn_16_2 --distill kd -r 0.1 -a 0.9 "$@"
distill wrn_40_2 wrn_16_2 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill wrn_40_2 wrn_40_1 --distill kd -r 0.1 -a 0.9 "$@"
distill wrn_40_2 wrn_40_1 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill vgg13 vgg8 --distill kd -r 0.1 -a 0.9 "$@"
distill vgg13 vgg8 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill resnet32x4 ShuffleV1 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet32x4 ShuffleV1 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill resnet32x4 ShuffleV2 --distill kd -r 0.1 -a 0.9 "$@"
distill resnet32x4 ShuffleV2 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill wrn_40_2 ShuffleV1 --distill kd -r 0.1 -a 0.9 "$@"
distill wrn_40_2 ShuffleV1 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill vgg13 MobileNetV2 --distill kd -r 0.1 -a 0.9 "$@"
distill vgg13 MobileNetV2 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill ResNet50 MobileNetV2 --distill kd -r 0.1 -a 0.9 "$@"
distill ResNet50 MobileNetV2 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
distill ResNet50 vgg8 --distill kd -r 0.1 -a 0.9 "$@"
distill ResNet50 vgg8 --distill kd -r 0.1 -a 0.9 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"

# DKD
distill resnet56 resnet20 --distill dkd -r 1 -a 1 -b 2 "$@"
distill resnet56 resnet20 --distill dkd -r 1 -a 1 -b 2 --curriculum_T --t_start 1 --t_end 20 --decay_loops 10 "$@"
