#!/bin/sh
# Train the CIFAR-100 networks from labels: the six teachers and the plain students of the benchmark tables.
# Extra arguments go to every run: sh scripts/run_cifar_vanilla.sh --trial 1. A second call goes on where the first one
# stopped.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python

# teachers
$python train_teacher.py --model wrn_40_2 --resume "$@"
$python train_teacher.py --model resnet56 --resume "$@"
$python train_teacher.py --model resnet110 --resume "$@"
$python train_teacher.py --model resnet32x4 --resume "$@"
$python train_teacher.py --model vgg13 --resume "$@"
$python train_teacher.py --model ResNet50 --resume "$@"

# students
$python train_teacher.py --model wrn_16_2 --resume "$@"
$python train_teacher.py --model wrn_40_1 --resume "$@"
$python train_teacher.py --model resnet20 --resume "$@"
$python train_teacher.py --model resnet32 --resume "$@"
$python train_teacher.py --model resnet8x4 --resume "$@"
$python train_teacher.py --model vgg8 --resume "$@"
$python train_teacher.py --model MobileNetV2 --resume "$@"
$python train_teacher.py --model ShuffleV1 --resume "$@"
$python train_teacher.py --model ShuffleV2 --resume "$@"
