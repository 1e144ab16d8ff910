# Sourced by the scripts that are lists of commands: goes to the repository's root and names what they share.
#
#   PYTHON=FILE  the interpreter (.venv's where there is one)
#   TRIAL=N      of the students (1)
# shellcheck shell=sh
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi

# train MODEL FLAGS...: a network from labels; goes on where it was cut off, and does nothing where it is finished
train() {
    model=$1
    shift
    "$PYTHON" train_teacher.py --model "$model" --resume "$@"
}

# distill TEACHER STUDENT FLAGS...: a student of a teacher that fetch_pretrained_teachers.sh fetches, in the same way
distill() {
    teacher=$1 student=$2
    shift 2
    "$PYTHON" train_student.py --path_t "./save/models/${teacher}_vanilla/ckpt_epoch_240.pth" --model_s "$student" \
        --trial "${TRIAL:-1}" --resume "$@"
}
