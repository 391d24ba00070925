#!/bin/sh
# A real Prometheus for the tests, without installing anything: Debian's package, which is two
# programs that need no library, is unpacked into .prometheus/.
# Needs apt and dpkg-deb (any Debian or Ubuntu); no root, and no service is started.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! apt-get -q download prometheus; then
  echo "apt-get download prometheus failed: run apt-get update, or put prometheus and promtool" \
    "into $root/.prometheus/usr/bin/" >&2
  exit 1
fi
rm -rf "$root/.prometheus"
mkdir -p "$root/.prometheus"
dpkg-deb -x prometheus_*.deb "$root/.prometheus"
find "$root/.prometheus" -type f ! -path '*/bin/*' -delete
find "$root/.prometheus" -type l -delete
find "$root/.prometheus" -type d -empty -delete
echo "Prometheus is in $root/.prometheus"
