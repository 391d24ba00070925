#!/bin/sh
# Real Redis servers for the tests, without installing anything: Debian's packages of Redis 7 and 8,
# with the libraries and the loader that they need, are unpacked into .redis7/ and .redis8/.
# Needs apt, dpkg-deb and Debian's archive key (any Debian; package debian-archive-keyring elsewhere);
# no root, and no service is started.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# The mirror that this machine uses already; DEBIAN_MIRROR names another.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
  grep -v security | head -n 1)}
if [ -z "$mirror" ]; then
  echo "No Debian mirror is known here: run apt-get update, or set DEBIAN_MIRROR." >&2
  exit 1
fi

unpack() { # VERSION SUITE
  work=$(mktemp -d)
  mkdir -p "$work/parts" "$work/lists/partial" "$work/cache/archives/partial"
  printf '%s\n' "Types: deb" "URIs: $mirror" "Suites: $2" "Components: main" \
    "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" > "$work/parts/debian.sources"
  options="-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$work/parts
    -o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o Dir::State::status=/dev/null
    -o Debug::NoLocking=1 -o APT::Sandbox::User=root"
  # shellcheck disable=SC2086
  apt-get $options update
  # shellcheck disable=SC2086
  apt-get $options install -y --download-only --no-install-recommends redis-server
  rm -rf "$root/.redis$1"
  mkdir -p "$root/.redis$1"
  for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root/.redis$1"; done
  find "$root/.redis$1" -type f ! -name 'redis-*' ! -name '*.so' ! -name '*.so.*' -delete
  find "$root/.redis$1" -type d -empty -delete
  rm -rf "$work"
  echo "Redis $1 is in $root/.redis$1"
}

unpack 7 bookworm
unpack 8 trixie
