#!/bin/sh
# Fetches Redis 8 from Debian trixie into .redis8/ without installing anything: the packages, and the
# libraries and the loader that they need, are unpacked there. Needs apt and Debian's archive key.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)/.redis8
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/parts" "$work/lists/partial" "$work/cache/archives/partial"
cat > "$work/parts/trixie.sources" <<SOURCES
Types: deb
URIs: ${DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
apt="-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$work/parts
     -o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o Dir::State::status=/dev/null"
apt-get $apt -q update
apt-get $apt -q install -y --download-only --no-install-recommends redis-server
mkdir -p "$here"
for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$here"; done
echo "Redis 8 is in $here"
