#!/usr/bin/env bash
# Installs what building, testing and the demo need and this machine lacks.
#
#   scripts/bootstrap.sh           installs what is missing; quick when nothing is
#   scripts/bootstrap.sh --bench   also what `make bench-drive` compares the drive with
#   scripts/bootstrap.sh --check   only prints what is missing; ends with 1 where something is
#   scripts/bootstrap.sh --windows instead what `make check-windows` needs; may go with --check
#
# Debian and Ubuntu, through apt-get (with sudo where not root). Elsewhere it names what to install.
set -euo pipefail

# What is looked for, and the package that has it: "command:package", or a file instead of a command.
needed=(
  cc:gcc
  make:make
  fusermount3:fuse3            # mounting as an ordinary user
  smbd:samba                   # a real share in tests
  smbclient:smbclient          # another client of it
  krb5kdc:krb5-kdc             # tickets for it:
  kadmin.local:krb5-admin-server
  kinit:krb5-user
  secret-tool:libsecret-tools  # passwords in the desktop's keyring
  gnome-keyring-daemon:gnome-keyring   # and one for the tests,
  dbus-run-session:dbus-daemon #   on a bus of theirs
  pffexport:pff-tools          # independent readers of PST files:
  readpst:pst-utils            #   our own must not judge our own writing
  rsync:rsync                  # compared in the demo
  xdelta3:xdelta3              # compared in the tests
  /usr/bin/time:time           # peak memory in the benchmarks
  /usr/bin/perl:perl-base      # the agent asks the kernel for file leases through it
  setpriv:util-linux           # tests that need another user
  mkfs.exfat:exfatprogs        # a stick to carry a cache on
  mkfs.vfat:dosfstools         #   and one of the old kind
  mount.exfat-fuse:exfat-fuse  #   where the kernel does not know its file system
  ip:iproute2                  # a link of the tests' own, slow, far or dead (tests/net/):
  ethtool:ethtool              #   without offloads,
  nft:nftables                 #   losing packets
  /etc/ssl/certs/ca-certificates.crt:ca-certificates   # cargo's downloads
)
cargo_deny_version=0.20.2
fsx_version=0.3.2               # random operations on the mounted drive
pjdfstest_version=0.2.2         # what POSIX says of file system calls, on the mounted drive

# A compiler that can build the standard library for Windows from its source.
windows=(
  x86_64-w64-mingw32-gcc-posix:gcc-mingw-w64-x86-64-posix
  /usr/bin/rustc:rustc-web
  /usr/bin/cargo:cargo-web
  /usr/lib/rustlib/src/rust/library/std/Cargo.toml:rust-web-src
)

check=false for_windows=false
for option in "$@"; do
  case $option in
    --check) check=true ;;
    --bench) needed+=(mergerfs:mergerfs bindfs:bindfs rclone:rclone) ;;
    --windows) for_windows=true ;;
    *)
      echo "bootstrap: unknown option $option; usage: scripts/bootstrap.sh [--bench | --windows] [--check]" >&2
      exit 2
      ;;
  esac
done
$for_windows && needed=("${windows[@]}")

# smbd and the like are not on every user's PATH.
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

if ! command -v cargo >/dev/null; then
  echo "bootstrap: cargo is missing: install Rust from https://rustup.rs, then run this again" >&2
  exit 1
fi

packages=()
for entry in "${needed[@]}"; do
  what=${entry%%:*} package=${entry##*:}
  case $what in
    /*) [ -e "$what" ] || packages+=("$package") ;;
    *) command -v "$what" >/dev/null || packages+=("$package") ;;
  esac
done
components=() deny=false fsx=false pjdfstest=false
if ! $for_windows; then
  cargo fmt --version >/dev/null 2>&1 || components+=(rustfmt)
  cargo clippy --version >/dev/null 2>&1 || components+=(clippy)
  command -v cargo-deny >/dev/null || deny=true
  command -v fsx >/dev/null || fsx=true
  command -v pjdfstest >/dev/null || pjdfstest=true
fi

missing=("${packages[@]}" "${components[@]}")
$deny && missing+=(cargo-deny)
$fsx && missing+=(fsx)
$pjdfstest && missing+=(pjdfstest)
if [ ${#missing[@]} -eq 0 ]; then
  echo "bootstrap: nothing is missing"
  exit 0
fi
echo "bootstrap: missing: ${missing[*]}"
if $check; then
  exit 1
fi

if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    echo "bootstrap: only Debian and Ubuntu are known here: install the programs of the packages" \
      "'${packages[*]}' with your system's own tool, then run this again" >&2
    exit 1
  fi
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "bootstrap: neither root nor sudo: as root run: apt-get install ${packages[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  # Daemons that a package brings are not to be started: tests start their own.
  apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qy "$@"; }
  apt update
  apt install --no-install-recommends "${packages[@]}"
fi
for component in "${components[@]}"; do
  rustup component add "$component"
done
if $deny; then
  cargo install --locked "cargo-deny@$cargo_deny_version"
fi
if $fsx; then
  cargo install --locked "fsx@$fsx_version"
fi
if $pjdfstest; then
  cargo install --locked "pjdfstest@$pjdfstest_version"
fi

# Only what is really there counts.
exec "$0" "$@" --check
