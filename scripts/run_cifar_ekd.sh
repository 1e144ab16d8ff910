#!/bin/sh
# EKD on CIFAR-100: evidential teachers, then their students with the published weights, priors and warm-ups per pair.
# The last two lines, under DKD and MLKD, are settings of the code's first upload. The priors are those that the
# authors' teachers had learned. Another teacher learns another one, which is `log_prior` in its summary.json: give
# that to the students instead, --ekd_prior X. common.sh says how to choose from the runs and how to list them;
# further arguments go to every student. Where the data are not in ./data, KD_DATA names their folder, to the teachers
# as well.
set -eu
. "$(dirname "$0")/common.sh"

# evidential TEACHER STUDENT FLAGS...: like distill, from the evidential teachers below
evidential() {
    schedule=
    # the published schedule of one of them differs, and so does its folder's name
    [ "$1" != resnet32x4 ] || schedule=lr_decay_epochs-80-150-180-210_
    distill_from "./save/models/$1_cifar100_lr_0.05_decay_0.0005_${schedule}loss-evidential_trial_0/$1_last.pth" "$@"
}

train resnet56 --loss evidential
train resnet110 --loss evidential
train resnet32x4 --loss evidential --lr_decay_epochs 80,150,180,210
train wrn_40_2 --loss evidential
train vgg13 --loss evidential
train ResNet50 --loss evidential

evidential resnet32x4 resnet8x4 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -1.22 --ekd_warmup 30 "$@"
evidential resnet56 resnet20 --distill ekd -r 1 -a 3.0 -b 2.0 --ekd_prior -0.93 --ekd_warmup 30 "$@"
evidential resnet110 resnet20 --distill ekd -r 1 -a 4.5 -b 1.0 --ekd_prior -0.86 --ekd_warmup 30 "$@"
evidential resnet110 resnet32 --distill ekd -r 1 -a 2.5 -b 2.5 --ekd_prior -0.86 --ekd_warmup 30 "$@"
evidential vgg13 vgg8 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -0.60 --ekd_warmup 30 "$@"
evidential wrn_40_2 wrn_16_2 --distill ekd -r 1 -a 2.5 -b 2.5 --ekd_prior -1.16 --ekd_warmup 30 "$@"
evidential wrn_40_2 wrn_40_1 --distill ekd -r 1 -a 4.5 -b 2.0 --ekd_prior -1.21 --ekd_warmup 30 "$@"
evidential resnet32x4 ShuffleV2 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -1.22 --ekd_warmup 30 "$@"
evidential resnet32x4 wrn_16_2 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -1.22 --ekd_warmup 30 "$@"
evidential resnet32x4 wrn_40_2 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -1.22 --ekd_warmup 30 "$@"
evidential ResNet50 MobileNetV2 --distill ekd -r 1 -a 4.5 -b 3.0 --ekd_prior -1.10 --ekd_warmup 150 "$@"
evidential vgg13 MobileNetV2 --distill ekd -r 1 -a 4.5 -b 3.0 --ekd_prior -1.23 --ekd_warmup 150 "$@"
evidential wrn_40_2 MobileNetV2 --distill ekd -r 1 -a 4.5 -b 4.5 --ekd_prior -1.21 --ekd_warmup 150 "$@"
evidential wrn_40_2 resnet8x4 --distill ekd -r 1 -a 6.0 -b 3.0 --ekd_prior -1.16 --ekd_warmup 30 "$@"

evidential resnet32x4 resnet8x4 --distill dkd -r 1 -a 4.5 -b 36 --kd_T 1 --kd_warmup 0 --ekd --ekd_weight 40.5 \
    --ekd_prior -1.22 --ekd_warmup 40 --ekd_evidence log_softplus "$@"
evidential resnet32x4 resnet8x4 --distill mlkd -r 0.1 -a 0.9 --ekd --ekd_weight 4.5 --ekd_prior -1.609 \
    --ekd_evidence log_softplus --learning_rate 0.025 --epochs 480 "$@"
