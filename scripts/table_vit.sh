#!/bin/sh
# Vision transformers as students of a resnet56 on CIFAR-100: from labels, with locality guidance, standardised logits
# and evidence. A DeiT that compares logits has a second head for it. The weights of standardised logits are the
# published ones divided by 100, since tiny-transformers' KL is also divided by the number of classes. TEACHER names
# the checkpoint (save/models/resnet56_vanilla/ckpt_epoch_240.pth). common.sh says how to choose from the runs and how
# to list them; further arguments go to every run.
set -eu
. "$(dirname "$0")/common.sh"

student() {
    distill_from "${TEACHER:-save/models/resnet56_vanilla/ckpt_epoch_240.pth}" resnet56 "$@"
}

plain "deit_ti pit_ti pvt_ti t2t_7" "$@"
for name in deit_ti pit_ti pvt_ti t2t_7; do
    student $name --distill lg -r 1 -b 2.5 "$@"
done
for name in deit_ti_distilled pit_ti pvt_ti t2t_7; do
    student $name --distill kd -r 0.5 -a 0.5 --kd_T 1 "$@"
    student $name --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"
done
student deit_ti_distilled --distill kd -r 0.5 -a 0.1 --logit_stand --kd_T 3 "$@"
student t2t_7 --distill kd -r 0.5 -a 0.06 --logit_stand --kd_T 3 "$@"
student pit_ti --distill kd -r 0.5 -a 0.09 --logit_stand --kd_T 2 "$@"
student pvt_ti --distill kd -r 0.5 -a 0.09 --logit_stand --kd_T 2 "$@"
# its evidence is that of the first upload, the only one with a form for transformers
student deit_ti_distilled --distill ekd -r 2 -a 4 -b 2 --ekd_prior -0.14 --ekd_evidence log_softplus --ekd_warmup 0 "$@"
