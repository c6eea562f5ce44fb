#!/bin/sh
# Everything that needs a GPU to be measured, in one run of a few minutes, as Markdown: bench/gpu.sh > results.md
# --small: sizes for any machine, to see that the script works. PYTHON: which one, if not that of .venv.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3

if [ "${1:-}" = --small ]; then
    targets=--small
    # A student as the teacher: its windows are short.
    exactness="--student tiny-en --teacher streaming/pretrained/tiny-en/student --device cpu --utterances 2 --batch 2 --dtype float32"
    streams="--streams 2 --device cpu --recording bench/data/demo.flac"
    service="--streams 2 --seconds 8 --student tiny-en --device cpu --recording bench/data/demo.flac"
else
    targets=
    exactness="--student tiny-en --teacher tiny-en --device cuda"
    streams="--streams 16 64 128 --device cuda --recording bench/data/demo.flac"
    service="--streams 50 100 200 300 --student tiny-en --teacher tiny-en --device cuda --recording bench/data/demo.flac"
fi

printf '# One GPU\n\n'
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    printf '\n'
fi
# The options are words of their own.
# shellcheck disable=SC2086
printf '## Targets\n\n' && "$python" -m bench.targets $targets
# shellcheck disable=SC2086
printf '\n## Exactness in low precision\n\n' && "$python" -m bench.exactness $exactness
# shellcheck disable=SC2086
printf '\n## Live streams through the service\n\n' && "$python" -m bench.streams $streams
# shellcheck disable=SC2086
printf '\n## What the whole service carries\n\n' && "$python" -m bench.service $service
