#!/bin/sh
# Fetch the six published CIFAR-100 teachers, check each and put it where train_student.py looks for it.
set -u
set -f # names and addresses are never patterns

ALL_TEACHERS="wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"
TEACHERS=${TEACHERS:-$ALL_TEACHERS}
TEACHER_URL=${TEACHER_URL:-http://shape2prog.csail.mit.edu/repo}
SAVE_FOLDER=${SAVE_FOLDER:-save}
RETRIES=${RETRIES:-3}
RETRY_PAUSE=${RETRY_PAUSE:-3}
TIMEOUT=${TIMEOUT:-30}

usage() {
    cat <<EOF
usage: sh scripts/fetch_pretrained_teachers.sh

Fetches published teachers into SAVE_FOLDER/models/NAME_vanilla/ckpt_epoch_240.pth. What is there and good is skipped,
a stopped transfer goes on where it ended. Exit code 0: all are there; 1: some could not be fetched; 2: bad settings;
3: the files cannot be written or checked.

Environment variables:
  TEACHERS      names, separated by spaces (default: $ALL_TEACHERS)
  TEACHER_URL   address that holds NAME_vanilla/ckpt_epoch_240.pth (default: http://shape2prog.csail.mit.edu/repo)
  SAVE_FOLDER   where to put them, relative to the repository (default: save)
  RETRIES       further tries after a failed transfer (default: 3)
  RETRY_PAUSE   seconds between them (default: 3)
  TIMEOUT       seconds without a connection or without data until a try is given up (default: 30)
  PYTHON        interpreter that has torch, where there is no .venv (default: python3)
EOF
}

say() { printf '%s\n' "$*"; } # echo may read a backslash in a path as an escape

# End with exit code $1 and one line.
die() {
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

# Whether $2 is one of the words in $1.
has_word() {
    case " $1 " in *" $2 "*) return 0 ;; esac
    return 1
}

check_settings() {
    for number in "$RETRIES" "$RETRY_PAUSE" "$TIMEOUT"; do
        case $number in
        *[!0-9]*) die 2 "RETRIES, RETRY_PAUSE and TIMEOUT are whole numbers, not '$number'" ;;
        esac
    done
    for name in $TEACHERS; do
        has_word "$ALL_TEACHERS" "$name" || die 2 "no published teacher '$name'; known: $ALL_TEACHERS"
    done
}

find_tools() {
    if command -v curl >/dev/null 2>&1; then
        tool=curl
    elif command -v wget >/dev/null 2>&1; then
        tool=wget
    else
        die 2 "neither curl nor wget is installed; install one of them"
    fi
    python=${PYTHON:-python3}
    [ -x .venv/bin/python ] && python=.venv/bin/python
    # Looked up rather than imported, which takes seconds: better to know before the download than after it.
    "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null ||
        die 2 "$python cannot check the files (no such program or no torch in it); set PYTHON to one that can"
}

# Run a command with its output in $log. It runs in the background because a shell acts on a signal during `wait`, but
# only after the end of a command in the foreground.
run() {
    busy=yes
    "$@" >"$log" 2>&1 &
    wait $!
    code=$?
    busy=no
    return "$code"
}

# On a signal: end the command in hand ($1 is the exit code). The .part file stays, the next run goes on from it.
# shellcheck disable=SC2317 # the traps call it
stop() {
    trap '' HUP INT TERM
    if [ "$busy" = yes ]; then
        kill $! 2>/dev/null
        wait $! 2>/dev/null
    fi
    echo "stopped; run it again to go on" >&2
    exit "$1"
}

# Transfer URL $1 to the end of file $2; sets $http, the server's last status (000 if it gave none).
transfer() {
    if [ "$tool" = curl ]; then
        run curl -fsSL -C - --connect-timeout "$TIMEOUT" --speed-limit 1 --speed-time "$TIMEOUT" \
            -w '\nHTTP/- %{http_code}\n' -o "$2" "$1"
    else
        run env LC_ALL=C wget -nv -S -c -t 1 -T "$TIMEOUT" -O "$2" "$1"
        [ -s "$2" ] || rm -f "$2" # wget leaves an empty file when it fails
    fi
    http=$(sed -n 's|^ *HTTP/[^ ]* \([0-9][0-9][0-9]\).*|\1|p' "$log" | tail -n 1)
    http=${http:-000}
    return "$code"
}

# The four questions about a failed transfer, from the exit codes in the manuals of curl and wget.
cannot_write() { has_word "curl23 wget3" "$tool$code"; }
cannot_resume() { [ "$http" = 416 ] || has_word "curl33 curl36" "$tool$code"; } # wget 200: it skips what it has
cannot_connect() { [ "$http" = 000 ] && has_word "curl5 curl6 curl7 curl28 wget4" "$tool$code"; }
is_refused() {
    case $http in
    408 | 429) return 1 ;; # these two ask for another try
    4??) return 0 ;;
    esac
    return 1
}

# Set $why for a failed transfer.
explain() {
    case $http in
    000) why="no answer from $TEACHER_URL" ;;
    2??) why="the transfer broke off" ;;
    *) why="the server answered $http" ;;
    esac
    said=$(sed -n 's/^curl: ([0-9]*) //p; s/^failed: //p; s/^wget: //p' "$log" | tail -n 1)
    case $http in
    000 | 2??) why="$why${said:+ ($said)}" ;;
    esac
}

# Transfer URL $1 to file $2, going on from what is in it, with retries. Sets $whole: whether the file came in one
# piece; and on failure $why.
download() {
    tries=0
    resume=yes
    while :; do
        [ "$resume" = yes ] || rm -f "$2"
        whole=yes
        [ -s "$2" ] && whole=no
        transfer "$1" "$2" && return 0
        cannot_write && die 3 "cannot write $2: the disk is full or the folder is not writable"
        if cannot_resume && [ "$resume" = yes ]; then
            resume=no # for the tries to come as well, else two kinds of failure could alternate for ever
            continue
        fi
        explain
        is_refused && return 1
        [ "$tries" -lt "$RETRIES" ] || break
        tries=$((tries + 1))
        run sleep "$RETRY_PAUSE"
    done
    cannot_connect && reachable=no
    return 1
}

# Whether file $1 begins like a web page: servers send one, with status 200, in place of a file they lost.
is_web_page() {
    dd if="$1" bs=1024 count=1 2>/dev/null | LC_ALL=C grep -qi -e '<!doctype' -e '<html'
}

# Whether file $2 holds weights of network $1; no code in it is run. Sets $why if not.
verify() {
    if [ -f "$2" ] && is_web_page "$2"; then
        why="a web page (HTML), not a checkpoint"
        return 1
    fi
    run "$python" -m helper.checkpoint "$1" "$2" && return 0
    line=$(tail -n 1 "$log")
    # Any other code says something about the interpreter and nothing about the file, which therefore stays.
    [ "$code" -eq 2 ] || die 3 "cannot check $2, since '$python -m helper.checkpoint' failed: $line"
    why=${line#error: }
    case $why in
    *"$2"*) why="${why%%"$2"*}the file${why#*"$2"}" ;; # the path stands in the messages already
    esac
    return 1
}

# Download URL $2 for network $1 to file $3 and verify it; a file that fails is removed.
download_verified() {
    download "$2" "$3" || return 1
    verify "$1" "$3" && return 0
    rm -f "$3"
    if [ "$whole" = no ]; then
        # The pieces may be of different files, or from a server that ignored where to go on: once more, from byte 0.
        download "$2" "$3" || return 1
        verify "$1" "$3" && return 0
        rm -f "$3"
    fi
    why="rejected what the server sent: $why"
    return 1
}

# Note that teacher $1 failed because of $why.
fail() {
    say "$1: FAILED, $why"
    failed="$failed $1"
}

# Bring teacher $1 to its place.
fetch() {
    target=$(target_of "$1")
    done_as="fetched"
    also=""
    if [ -e "$target" ]; then
        verify "$1" "$target" && say "$1: already there, $target" && return
        done_as="replaced a bad file (kept as $target.bad)"
        also="; and what is there is bad: $why"
    fi
    if [ "$reachable" = no ]; then
        why="not tried since the server does not answer$also"
        fail "$1"
        return
    fi
    folder=${target%/*}
    { mkdir -p "$folder" && [ -w "$folder" ]; } 2>/dev/null || die 3 "cannot write into $folder"
    [ -t 2 ] && say "$1: fetching $TEACHER_URL/$1_vanilla/ckpt_epoch_240.pth ..." >&2
    if ! download_verified "$1" "$TEACHER_URL/$1_vanilla/ckpt_epoch_240.pth" "$target.part"; then
        why=$why$also
        fail "$1"
        return
    fi
    if [ -e "$target" ]; then
        mv -f "$target" "$target.bad" || die 3 "cannot set $target aside"
    fi
    mv -f "$target.part" "$target" || die 3 "cannot write $target"
    say "$1: $done_as, $target"
}

target_of() {
    say "$SAVE_FOLDER/models/$1_vanilla/ckpt_epoch_240.pth"
}

advise() {
    {
        echo
        echo "Not fetched:$failed. For each of them, one of these will do:"
        echo "- train it:"
        for name in $failed; do
            echo "    python train_teacher.py --model $name"
        done
        echo "- copy a checkpoint by hand and run this script again, which checks it:"
        for name in $failed; do
            say "    $(target_of "$name")"
        done
        echo "- fetch from a mirror: TEACHER_URL=http://MIRROR/FOLDER sh scripts/fetch_pretrained_teachers.sh"
        echo "- use any other checkpoint of that network: python train_student.py --path_t FILE ..."
    } >&2
}

case ${1-} in
-h | --help) usage && exit 0 ;;
?*) die 2 "unknown argument '$1' (settings are environment variables; see --help)" ;;
esac
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 2
TEACHER_URL=${TEACHER_URL%/}
check_settings
find_tools

scratch=$(mktemp -d) || die 3 "cannot write a temporary file"
log=$scratch/log
busy=no
reachable=yes
failed=""
trap 'rm -rf "$scratch"' EXIT
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM

for name in $TEACHERS; do
    fetch "$name"
done
[ -z "$failed" ] && exit 0
advise
exit 1
