# Sourced by the scripts that are lists of runs. Goes to the repository's root; defines `train`, `plain` and `distill`,
# which run what is selected, one after the other:
#
#   PAIRS="resnet56:resnet20 ..."  teacher:student, only these
#   METHODS="kd kd+sort ..."       only these: the value of --distill and, in the order of the flags, +sort, +ekd, ...;
#                                  "labels" are students without a teacher, "teachers" their own training
#   TRIALS="1 2 3"                 of students (1)
#   EPOCHS=N                       shorten the students' schedules to N epochs (--scale_epochs)
#   EXTRA="--teacher_cache DIR"    further flags for every run of train_student.py
#   PYTHON=FILE                    the interpreter (.venv's where there is one)
#
# and, as the first argument of the script, --list: print the commands, one on a line, instead. Other arguments go to
# every run. A selection that fits no run is an error. Runs that are finished are skipped, those that were cut off go
# on. One that fails does not stop the others; it is named at the end, with its log.
# shellcheck shell=sh
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
LIST=
if [ "${1:-}" = --list ]; then
    LIST=1
    shift
fi
logs=save/logs
selection=  # whether any run was selected
nothing=4   # exit code where none was

# selected WORD LIST: whether a word is in a list; every word is in an empty one
selected() {
    case " ${2:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
}

# method FLAGS...: what METHODS calls a run of train_student.py with these flags; `beside` is what a list sets where -a
# weighs a term that the method's published form leaves out
method() {
    name=kd
    changes=
    while [ $# -gt 0 ]; do
        case $1 in
            --distill) name=$2 ;;
            --optimizer) changes="$changes+$2" ;;
            --sort | --ekd | --curriculum_T) changes="$changes+${1#--}" ;;
            --logit-stand | --logit_stand) changes="$changes+logit_stand" ;;
        esac
        shift
    done
    echo "$name${beside:-}$changes"
}

# run NAME COMMAND...: a command of the interpreter, with its output on the terminal and in NAME's log
run() {
    selection=fits
    log="$logs/$1.log"
    shift
    if [ -n "$LIST" ]; then
        printf '%s' "$PYTHON"
        printf ' %s' "$@"
        echo
        return
    fi
    mkdir -p "$logs"
    echo "$PYTHON $*"
    # a pipe ends as its last command does, so the status takes another way
    { "$PYTHON" "$@" 2>&1 || echo "$log" >> "$logs/failed.$$"; } | tee -a "$log"
}

# train MODEL FLAGS...: a teacher from labels, by its full schedule
train() {
    model=$1
    shift
    selected teachers "${METHODS:-}" || return 0
    case " ${PAIRS:-$model:}" in *" $model:"*) ;; *) return 0 ;; esac
    run "teacher-$model-$(echo "$*" | cksum | cut -d ' ' -f 1)" train_teacher.py --model "$model" --resume "$@"
}

# plain "STUDENT ..." FLAGS...: students from labels, once for each trial
plain() {
    students=$1
    shift
    selected labels "${METHODS:-}" || return 0
    for student in $students; do
        case "${PAIRS:-:$student} " in *":$student "*) ;; *) continue ;; esac
        for trial in ${TRIALS:-1}; do
            # shellcheck disable=SC2086  # a flag and its value
            run "labels-$student-$trial-$(echo "$*" | cksum | cut -d ' ' -f 1)" \
                train_teacher.py --model "$student" --trial "$trial" ${EPOCHS:+--scale_epochs $EPOCHS} --resume "$@"
        done
    done
}

# distill_from FILE TEACHER STUDENT FLAGS...: a student of the teacher in a file, once for each trial
distill_from() {
    file=$1 teacher=$2 student=$3
    shift 3
    selected "$teacher:$student" "${PAIRS:-}" && selected "$(method "$@")" "${METHODS:-}" || return 0
    for trial in ${TRIALS:-1}; do
        # shellcheck disable=SC2086
        run "$(method "$@")-$teacher-$student-$trial-$(echo "$*" | cksum | cut -d ' ' -f 1)" \
            train_student.py --path_t "$file" --model_s "$student" --trial "$trial" \
            ${EPOCHS:+--scale_epochs $EPOCHS} --resume "$@" ${EXTRA:-}
    done
}

# distill TEACHER STUDENT FLAGS...: the same with a teacher of fetch_pretrained_teachers.sh
distill() {
    distill_from "./save/models/$1_vanilla/ckpt_epoch_240.pth" "$@"
}

# script NAME ARGUMENTS...: another list of this folder
script() {
    name=$1
    shift
    status=0
    PYTHON=$PYTHON INNER=1 sh "scripts/$name" ${LIST:+--list} "$@" || status=$?
    case $status in
        0) selection=fits ;;
        "$nothing") ;;
        *) failed_script "$name" ;;
    esac
}

# failed_script NAME
failed_script() {
    selection=fits
    mkdir -p "$logs"
    echo "scripts/$name" >> "$logs/failed.$$"
}

finish() {
    status=$?
    if [ "$status" = 0 ] && [ -z "$selection" ]; then
        [ -n "${INNER:-}" ] || echo "no run fits PAIRS='${PAIRS:-}' METHODS='${METHODS:-}'; --list shows them all" >&2
        exit "$nothing"
    fi
    [ -s "$logs/failed.$$" ] || exit "$status"
    echo "these runs failed, see their logs:" >&2
    sed 's/^/  /' "$logs/failed.$$" >&2
    rm -f "$logs/failed.$$"
    exit 1
}
trap finish EXIT
