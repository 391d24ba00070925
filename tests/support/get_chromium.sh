#!/bin/sh
# A real headless Chromium for the tests, without installing anything: Debian's package with the
# libraries that it needs is unpacked into .chromium/. The C library is this machine's own.
# Needs apt and dpkg-deb on Debian (`apt-get update` was run once); no root, and no service is started.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/cache/archives/partial"
if ! apt-get -q -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" -o Debug::NoLocking=1 \
  -o APT::Sandbox::User=root install -y --download-only --no-install-recommends \
  chromium-headless-shell; then
  echo "There is no chromium-headless-shell here: run apt-get update, or playwright install chromium" >&2
  exit 1
fi
rm -rf "$root/.chromium"
mkdir -p "$root/.chromium"
for package in "$work"/cache/archives/*.deb; do
  case $package in */libc6_* | */libc-bin_*) continue ;; esac
  dpkg-deb -x "$package" "$root/.chromium"
done
# Nothing here draws on a GPU: Mesa and its compiler may go.
find "$root/.chromium" ! -type d \( -name 'libLLVM*' -o -name 'libgallium*' -o -path '*/dri/*' -o -path '*/doc/*' \
  -o -path '*/man/*' \) -delete
find "$root/.chromium" -type f ! -path '*/chromium/*' ! -path '*/fonts/*' ! -name '*.so' ! -name '*.so.*' -delete
find "$root/.chromium" -type d -empty -delete
echo "Chromium is in $root/.chromium"
