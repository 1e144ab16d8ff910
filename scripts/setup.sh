#!/bin/sh
# Make .venv in the repository and install what the named requirement files list; does nothing where that is done.
# Usage: sh scripts/setup.sh requirements.txt [MORE.txt ...]     PYTHON=python3.12 chooses the interpreter
set -eu
cd "$(dirname "$0")/.."

# an interrupted first call may leave a .venv without pip, an upgraded system one without its interpreter
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: $python is missing or older than Python 3.10; name another with PYTHON=/path/to/python3" >&2
        exit 2
    fi
    "$python" -m venv .venv || {
        rm -rf .venv
        echo "error: cannot make .venv (on Debian and Ubuntu: apt-get install python3-venv)" >&2
        exit 2
    }
fi

for file in "$@"; do
    # the mark holds the list as it was installed, so that a changed list is installed again
    mark=.venv/.installed-$(echo "$file" | tr / -)
    if ! cmp -s "$file" "$mark"; then
        .venv/bin/python -m pip install --disable-pip-version-check -r "$file"
        cp "$file" "$mark"
    fi
done
