#!/bin/sh
# Every method (but lg, for transformers alone) for a few epochs on a part of CIFAR-100, resnet56 -> resnet20, one seed:
# shows that each learns and what it costs. Too short to rank methods. Finished runs are kept; a second call goes on
# where the first stopped.
#
#   TEACHER=FILE   checkpoint of a resnet56 (save/models/resnet56_vanilla/ckpt_epoch_240.pth)
#   COMMON=FLAGS   for all runs (--subset 100 --epochs 3 --lr_decay_epochs 2 --warmup_epochs 0)
#   PYTHON=FILE    the interpreter (.venv's where there is one)
set -eu
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
TEACHER=${TEACHER:-save/models/resnet56_vanilla/ckpt_epoch_240.pth}
COMMON=${COMMON:---subset 100 --epochs 3 --lr_decay_epochs 2 --warmup_epochs 0}
failed=""

check() {
    # shellcheck disable=SC2086  # COMMON is a list of flags
    "$PYTHON" train_student.py --distill "$@" --path_t "$TEACHER" --model_s resnet20 --trial 1 --resume --print_freq 1000 $COMMON ||
        failed="$failed $1"
}

# shellcheck disable=SC2086
"$PYTHON" train_teacher.py --model resnet20 --trial 1 --resume --print_freq 1000 $COMMON || failed="$failed labels"
check kd
check kd --optimizer dot
check ldrld
check dkd --kd_warmup 1
check dist
check wsld
check hint
check attention
check similarity
check correlation
check vid
check rkd
check pkt
check abound --init_epochs 1
check factor --init_epochs 1
check fsp --init_epochs 1
check nst
check crd
check kdsvd
check ofd
check ReviewKD --kd_warmup 1
check srrl
check simkd
check catkd
check wkd_l
check wkd_f
check wkd
check mlkd
check ekd
"$PYTHON" report.py --dataset cifar100
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
