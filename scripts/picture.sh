#!/usr/bin/env bash
# A picture of a page: picture.sh PAGE.html OUT.png, the top of it as a browser shows it. Needs chromium (Debian's package).
set -euo pipefail
PAGE=$(realpath "$1")
OUT=$(realpath -m "$2")
BROWSER=$(command -v chromium || command -v chromium-browser) || { echo "a picture of a page needs chromium" >&2; exit 1; }
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
# Root may not use the sandbox; the page is our own. Nothing is looked up on a network.
"$BROWSER" --headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run \
  --user-data-dir="$WORK/profile" --hide-scrollbars --window-size=1120,1180 --screenshot="$WORK/page.png" "file://$PAGE" > "$WORK/log" 2>&1 ||
  { cat "$WORK/log" >&2; exit 1; }
[ -s "$WORK/page.png" ] || { echo "$BROWSER made no picture of $PAGE:" >&2; cat "$WORK/log" >&2; exit 1; }
mv "$WORK/page.png" "$OUT"
