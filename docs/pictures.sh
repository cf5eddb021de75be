#!/usr/bin/env bash
# Makes the pictures of README.md and docs/report.md from a real quickstart: the console while it runs, the report, and figures of it.
# Needs tmux and chromium. Usage: docs/pictures.sh [RESULTS], from the root of the tree; RESULTS must not hold a quickstart yet.
set -euo pipefail
results=${1:-out/pictures}
images=docs/images
width=100 height=32

frame() { tmux capture-pane -t fat-ray-pictures -p -e; }

tmux new-session -d -s fat-ray-pictures -x $width -y $height ".venv/bin/fat-ray launch studies/quickstart.yaml --out '$results'; sleep 2"
trap 'tmux kill-session -t fat-ray-pictures 2>/dev/null || true' EXIT
until tmux capture-pane -t fat-ray-pictures -p | grep -qE '^t000[5-9].*running +[1-9]'; do sleep 1; done
frame > "$results/console.ansi"
while tmux has-session -t fat-ray-pictures 2>/dev/null; do sleep 1; done

.venv/bin/python - "$results/console.ansi" "$images/console.svg" $width <<'PYTHON'
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

source, target, width = sys.argv[1:]
lines = Path(source).read_text().rstrip().splitlines()
console = Console(record=True, width=int(width), file=open("/dev/null", "w"))
console.print(Text.from_ansi("\n".join(lines)), no_wrap=True)
svg = console.export_svg(title="fat-ray launch studies/quickstart.yaml")
Path(target).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))  # no fonts from a network
PYTHON

profile=$(mktemp -d)
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update \
  --disable-sync --user-data-dir="$profile" --hide-scrollbars --window-size=1180,1900 --virtual-time-budget=5000 \
  --screenshot="$images/report.png" "file://$(realpath "$results")/quickstart/report.html" 2> /dev/null
rm -rf "$profile"
for figure in schedule score landscape; do
  .venv/bin/fat-ray plot "$results/quickstart" --figure $figure --out "$images/$figure.svg" --width 120mm
done
ls -l $images
