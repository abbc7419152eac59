#!/bin/sh
# usage: fetch_austen.sh OUTDIR
# Fetches Jane Austen's six novels (public domain), one plain-text file each, out of the Debian and Ubuntu package
# r-cran-janeaustenr. Nothing is installed and root is not needed. With DEMO_TEXT=FILE that file is taken instead.
# OUTDIR appears when it is whole.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: fetch_austen.sh OUTDIR" >&2; exit 2; }
package=r-cran-janeaustenr
package_sha256=df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95 # 1.0.0-1

fail() { echo "nibble: $1" >&2; exit 1; }

out=${1%/}
[ ! -e "$out" ] || fail "$out exists already; remove it to fetch the text again"
mkdir -p "$(dirname "$out")"
work=$(cd "$(dirname "$out")" && pwd)/$(basename "$out").partial
rm -rf "$work"
mkdir "$work"
trap 'rm -rf "$work"' EXIT
mkdir "$work/text"

if [ -n "${DEMO_TEXT:-}" ]; then
    cp "$DEMO_TEXT" "$work/text/" || fail "cannot read DEMO_TEXT=$DEMO_TEXT"
else
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "this system has no apt; name a text of your own: DEMO_TEXT=file make demo"
    cd "$work"
    # The system's package lists, or, where they are missing or old, fresh ones of our own beside the download.
    if ! apt-get download "$package" >apt.log 2>&1; then
        mkdir -p lists/partial cache/archives/partial
        set -- -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Debug::NoLocking=1
        { apt-get "$@" update && apt-get "$@" download "$package"; } >apt.log 2>&1 || {
            tail -n 3 apt.log >&2
            fail "cannot download the package $package; name a text of your own: DEMO_TEXT=file make demo"
        }
    fi
    echo "$package_sha256  $(echo "$package"_*.deb)" | sha256sum --check --status ||
        echo "note: $(echo "$package"_*.deb) is not version 1.0.0-1" >&2
    dpkg-deb -x "$package"_*.deb package
    python3 "$here/extract_austen.py" package text
    cd - >/dev/null
fi
mv "$work/text" "$out"
