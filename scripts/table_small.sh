#!/bin/sh
# A table for an evening on a CPU: resnet56 -> resnet20, nine methods, two trials of 4 epochs, one cache of the logits
# of the teacher. TEACHER names its checkpoint (save/models/resnet56_vanilla/ckpt_epoch_240.pth).
# common.sh says how to choose from the runs and how to list them; further arguments go to every run.
set -eu
METHODS=${METHODS:-labels kd dkd crd dist kd+logit_stand kd+sort ekd ldrld}
TRIALS=${TRIALS:-1 2}
EPOCHS=${EPOCHS:-4}
EXTRA=${EXTRA:---teacher_cache save/teacher_cache}
export METHODS TRIALS EPOCHS EXTRA
. "$(dirname "$0")/common.sh"

student() {
    distill_from "${TEACHER:-save/models/resnet56_vanilla/ckpt_epoch_240.pth}" resnet56 resnet20 "$@"
}

script compare_transforms.sh "$@"
student --distill dist -r 1 -a 2 -b 2 "$@"
student --distill crd -r 1 -a 0 -b 0.8 "$@"
