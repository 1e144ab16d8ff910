#!/bin/sh
# What sorting, standardising, a learned temperature and evidence do to logit methods: resnet56 -> resnet20, one
# schedule for all. Weights are published ones where there are any: LDRLD's are of another pair, those of evidence
# under DKD were chosen here, and MLKD's authors halve the learning rate. TEACHER names the checkpoint
# (save/models/resnet56_vanilla/ckpt_epoch_240.pth). common.sh says how to choose from the runs and how to list them;
# further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

student() {
    distill_from "${TEACHER:-save/models/resnet56_vanilla/ckpt_epoch_240.pth}" resnet56 resnet20 "$@"
}

plain "resnet20" "$@"
student --distill kd -r 0.1 -a 0.9 "$@"
student --distill kd -r 0.1 -a 0.9 --sort "$@"
student --distill kd -r 0.1 -a 9 --logit_stand --kd_T 2 "$@"
student --distill kd -r 0.1 -a 0.9 --curriculum_T "$@"
student --distill kd -r 0.1 -a 9 --sort --logit_stand --kd_T 2 "$@"
student --distill dkd -r 1 -a 1 -b 2 "$@"
student --distill dkd -r 1 -a 1 -b 2 --sort "$@"
student --distill ekd -r 1 -a 3.0 -b 2.0 --ekd_prior -0.93 "$@"
student --distill dkd -r 1 -a 1 -b 2 --ekd --ekd_weight 2.0 --ekd_prior -0.93 "$@"
student --distill mlkd -r 0.1 -a 0.9 "$@"
student --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 "$@"
student --distill ldrld -r 1.0 -a 10.5 -b 7.0 --kd_T 4 --sort "$@"
