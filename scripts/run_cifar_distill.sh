#!/bin/sh
# Every method on CIFAR-100, resnet32x4 -> resnet8x4, with the published weights.
# Fetch the teacher first: sh scripts/fetch_pretrained_teachers.sh
# Extra arguments go to every run: sh scripts/run_cifar_distill.sh --epochs 30. A second call goes on where the first one
# stopped.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python

distill() {
    $python train_student.py --path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --model_s resnet8x4 --trial 1 \
        --resume "$@"
}

# RepDistiller's lines
distill --distill kd -r 0.1 -a 0.9 -b 0 "$@"
distill --distill hint -a 0 -b 100 "$@"
distill --distill attention -a 0 -b 1000 "$@"
distill --distill similarity -a 0 -b 3000 "$@"
distill --distill correlation -a 0 -b 0.02 "$@"
distill --distill vid -a 0 -b 1 "$@"
distill --distill rkd -a 0 -b 1 "$@"
distill --distill pkt -a 0 -b 30000 "$@"
distill --distill abound -a 0 -b 1 "$@"
distill --distill factor -a 0 -b 200 "$@"
distill --distill fsp -a 0 -b 50 "$@"
distill --distill nst -a 0 -b 50 "$@"
distill --distill crd -a 0 -b 0.8 "$@"
distill --distill crd -a 1 -b 0.8 "$@"

# LDRLD's line, and the other baselines with the weights of their authors
distill --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"
distill --distill kdsvd "$@"
distill --distill ofd "$@"
distill --distill ReviewKD "$@"
distill --distill wsld "$@"
distill --distill dkd "$@"
distill --distill dist "$@"
distill --distill catkd "$@"
distill --distill simkd "$@"
distill --distill srrl "$@"
distill --distill wkd_l "$@"
distill --distill wkd_f "$@"
distill --distill kd -r 0.1 -a 0.9 --optimizer dot "$@"
