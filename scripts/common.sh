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
# and, among the arguments of the script, --list: print the commands, one on a line, instead. Other arguments go to
# every student, with a teacher or without; to a teacher's own training only where the list says so, since its file is
# looked for in a folder whose name other flags would change. The folder of the data is named for every run by the
# environment variable KD_DATA. A word of PAIRS or METHODS that fits no run is an error, before anything is started.
# Runs that are finished are skipped, those that were cut off go on. One that fails does not stop the others; it is
# named at the end, with its log.
# shellcheck shell=sh
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
LIST=  # --list, or --names: print what `selected` is asked, "METHOD TEACHER:STUDENT" on a line, and run nothing
for word; do
    shift
    case $word in
        --list | --names) LIST=$word ;;
        *) set -- "$@" "$word" ;;
    esac
done
logs=save/logs
selection=  # whether any run was selected
nothing=4   # exit code where none was

# selected METHOD TEACHER:STUDENT: whether a run is; without a teacher it is :STUDENT, and a teacher's own TEACHER:
selected() {
    if [ "$LIST" = --names ]; then
        echo "$1 $2"
        return 1
    fi
    case " ${METHODS:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
    left=" " right=" "
    case $2 in
        :*) left= ;;
        *:) right= ;;
    esac
    case " ${PAIRS:-$2} " in *"$left$2$right"*) ;; *) return 1 ;; esac
}

# unfit: reads what --names prints, and prints the words of PAIRS and METHODS that fit no run. A run from labels fits
# every pair that it has half of, but only pairs that the list has (one that only trains from labels has none): else a
# misspelt teacher would fit its student.
unfit() {
    awk -v pairs="${PAIRS:-}" -v methods="${METHODS:-}" '
        function fits(run, word) {
            if (run == word) return 1
            if (run ~ /.:./ || (has_pairs && !(word in has))) return 0
            return run ~ /^:/ ? substr(word, index(word, ":")) == run : index(word, run) == 1
        }
        function left_out(name, words, count, used,    i, text) {
            for (i = 1; i <= count; i++) if (!(words[i] in used)) text = text (text ? " " : "") words[i]
            return text ? " " name "=\047" text "\047" : ""
        }
        {
            method[NR] = $1
            pair[NR] = $2
            has[$2]
            if ($2 ~ /.:./) has_pairs = 1
        }
        END {
            pair_count = split(pairs, pair_words)
            method_count = split(methods, method_words)
            for (i = 1; i <= method_count; i++) chosen[method_words[i]]
            for (run = 1; run <= NR; run++) {
                if (method_count && !(method[run] in chosen)) continue
                if (!pair_count) method_used[method[run]]
                for (i = 1; i <= pair_count; i++) if (fits(pair[run], pair_words[i])) {
                    pair_used[pair_words[i]]
                    method_used[method[run]]
                }
            }
            printf "%s", left_out("PAIRS", pair_words, pair_count, pair_used)
            printf "%s", left_out("METHODS", method_words, method_count, method_used)
        }'
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
    selected teachers "$model:" || return 0
    run "teacher-$model-$(echo "$*" | cksum | cut -d ' ' -f 1)" train_teacher.py --model "$model" --resume "$@"
}

# plain "STUDENT ..." FLAGS...: students from labels, once for each trial
plain() {
    students=$1
    shift
    for student in $students; do
        selected labels ":$student" || continue
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
    selected "$(method "$@")" "$teacher:$student" || return 0
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
    PYTHON=$PYTHON INNER=1 sh "scripts/$name" ${LIST:+"$LIST"} "$@" || status=$?
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

no_run_fits() {
    echo "no run fits$1; --list alone shows them all" >&2
}

finish() {
    status=$?
    if [ "$status" = 0 ] && [ -z "$selection" ]; then
        [ -n "${INNER:-}" ] || no_run_fits " PAIRS='${PAIRS:-}' METHODS='${METHODS:-}'"
        exit "$nothing"
    fi
    [ -s "$logs/failed.$$" ] || exit "$status"
    echo "these runs failed, see their logs:" >&2
    sed 's/^/  /' "$logs/failed.$$" >&2
    rm -f "$logs/failed.$$"
    exit 1
}

# A list is gone through twice: a misspelt word is better known before the runs, which take days, than after them. What
# a script starts on its own is not started then.
if [ -z "${INNER:-}" ] && [ -n "${PAIRS:-}${METHODS:-}" ]; then
    words=$(PYTHON=: INNER=1 sh "scripts/${0##*/}" --names "$@" | unfit)
    if [ -n "$words" ]; then
        no_run_fits "$words"
        exit "$nothing"
    fi
fi
trap finish EXIT
