#!/bin/sh
# Tiny-ImageNet: the pairs of DOT's table. Only KD and KD under DOT have published hyperparameters here; the others keep
# those of CIFAR-100. Trains the teacher first. The data are in the folder that KD_DATA names.
# common.sh says how to choose from the runs and how to list them; further arguments go to every student.
set -eu
. "$(dirname "$0")/common.sh"

tiny() {
    student=$1
    shift
    teacher=imagenet_ResNet18
    distill_from "./save/models/${teacher}_tiny_imagenet_lr_0.2_decay_0.0005_trial_0/${teacher}_last.pth" \
        $teacher "$student" --dataset tiny_imagenet "$@"
}

train imagenet_ResNet18 --dataset tiny_imagenet
plain "MobileNetV2 ShuffleV2" --dataset tiny_imagenet "$@"
for student in MobileNetV2 ShuffleV2; do
    tiny $student --distill kd -r 0.1 -a 0.9 "$@"
    tiny $student --distill kd -r 0.1 -a 0.9 --optimizer dot "$@"
    tiny $student --distill kd -r 0.1 -a 0.9 --sort "$@"
    tiny $student --distill kd -r 0.1 -a 9 --logit_stand --kd_T 2 "$@"
    tiny $student --distill dkd -r 1 -a 1 -b 8 "$@"
    tiny $student --distill dist -r 1 -a 2 -b 2 "$@"
    tiny $student --distill crd -r 1 -a 0 -b 0.8 "$@"
    tiny $student --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"
done
