#!/bin/sh
# Every method on CIFAR-100, resnet32x4 -> resnet8x4, with the published weights. Fetch the teacher first: sh
# scripts/fetch_pretrained_teachers.sh Extra arguments go to every run: sh scripts/run_cifar_distill.sh --epochs 30. A
# second call goes on where the first one stopped.
set -eu
. "$(dirname "$0")/common.sh"

# RepDistiller's lines
distill resnet32x4 resnet8x4 --distill kd -r 0.1 -a 0.9 -b 0 "$@"
distill resnet32x4 resnet8x4 --distill hint -a 0 -b 100 "$@"
distill resnet32x4 resnet8x4 --distill attention -a 0 -b 1000 "$@"
distill resnet32x4 resnet8x4 --distill similarity -a 0 -b 3000 "$@"
distill resnet32x4 resnet8x4 --distill correlation -a 0 -b 0.02 "$@"
distill resnet32x4 resnet8x4 --distill vid -a 0 -b 1 "$@"
distill resnet32x4 resnet8x4 --distill rkd -a 0 -b 1 "$@"
distill resnet32x4 resnet8x4 --distill pkt -a 0 -b 30000 "$@"
distill resnet32x4 resnet8x4 --distill abound -a 0 -b 1 "$@"
distill resnet32x4 resnet8x4 --distill factor -a 0 -b 200 "$@"
distill resnet32x4 resnet8x4 --distill fsp -a 0 -b 50 "$@"
distill resnet32x4 resnet8x4 --distill nst -a 0 -b 50 "$@"
distill resnet32x4 resnet8x4 --distill crd -a 0 -b 0.8 "$@"
distill resnet32x4 resnet8x4 --distill crd -a 1 -b 0.8 "$@"

# LDRLD's line, and the other baselines with the weights of their authors
distill resnet32x4 resnet8x4 --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 "$@"
distill resnet32x4 resnet8x4 --distill kdsvd "$@"
distill resnet32x4 resnet8x4 --distill ofd "$@"
distill resnet32x4 resnet8x4 --distill ReviewKD "$@"
distill resnet32x4 resnet8x4 --distill wsld "$@"
distill resnet32x4 resnet8x4 --distill dkd "$@"
distill resnet32x4 resnet8x4 --distill dist "$@"
distill resnet32x4 resnet8x4 --distill catkd "$@"
distill resnet32x4 resnet8x4 --distill simkd "$@"
distill resnet32x4 resnet8x4 --distill srrl "$@"
distill resnet32x4 resnet8x4 --distill wkd_l "$@"
distill resnet32x4 resnet8x4 --distill wkd_f "$@"
distill resnet32x4 resnet8x4 --distill kd -r 0.1 -a 0.9 --optimizer dot "$@"
