#!/bin/sh
# Lint proto/ with buf where it is installed (BUF names the binary); the format is checked as well.
set -eu
cd "$(dirname "$0")/../proto"
buf=${BUF:-buf}
if ! command -v "$buf" >/dev/null 2>&1; then
    echo "lint_proto: no buf on PATH (npm package @bufbuild/buf); proto/ was not linted" >&2
    exit 0
fi
"$buf" lint
"$buf" format --diff --exit-code
