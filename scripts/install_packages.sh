#!/bin/sh
# Installs what is missing of scripts/packages.txt (and of any package named as an argument) with the
# distribution's package manager. Prints the list first; uses sudo when not root; does nothing when all is there.
set -eu
here=$(dirname "$0")
wanted="$(sed '/^#/d' "$here/packages.txt") $*"

if ! command -v dpkg-query >/dev/null; then
    echo "nibble: this system has no dpkg; install the equivalents of scripts/packages.txt yourself" >&2
    exit 0
fi

missing=""
for package in $wanted; do
    case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0

echo "nibble: installing from the distribution:$missing"
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    as_root=sudo
    if ! command -v sudo >/dev/null; then
        echo "nibble: not root and no sudo; as root run: apt-get install$missing" >&2
        exit 1
    fi
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $as_root apt-get update && $as_root apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "nibble: the packages above could not be installed (on Ubuntu, is the 'universe' component enabled?)" >&2
    exit 1
fi
