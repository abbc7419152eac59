#!/bin/bash
# fetch_debian_packages.sh DIR PKG...: download Debian packages with apt (no root, nothing installed) and unpack each into DIR/PKG.
# Needs one earlier `apt-get update`.
set -eu
dir=$1; shift
mkdir -p "$dir/.deb"
for p in "$@"; do
  [ -d "$dir/$p" ] && continue
  (cd "$dir/.deb" && rm -f "${p}_"*.deb && apt-get download "$p" >/dev/null)
  dpkg -x "$dir/.deb/${p}_"*.deb "$dir/$p.part" && mv "$dir/$p.part" "$dir/$p"
  rm -f "$dir/.deb/${p}_"*.deb
done
