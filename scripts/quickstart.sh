#!/bin/sh
# From a bare machine to a comparison: environment, embedded data, plain student, KD and LDRLD, table and figure.
# TRIALS="1 2 3" repeats every run with other seeds. A second call reuses what is there.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh requirements.txt

save=${SAVE_FOLDER:-save/quickstart}
for trial in ${TRIALS:-1}; do
    set -- --dataset shapes100 --trial "$trial" --save_folder "$save" --resume --print_freq 50
    .venv/bin/python train_teacher.py --model resnet8 "$@"
    .venv/bin/python train_student.py --distill kd --model_s resnet8 "$@"
    .venv/bin/python train_student.py --distill ldrld -r 1.0 -b 7.0 -a 10.5 --kd_T 4 --model_s resnet8 "$@"
done
.venv/bin/python report.py --save_folder "$save" --dataset shapes100 --figure "$save/learning_curves.png"
