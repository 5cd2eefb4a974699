#!/usr/bin/env bash
# Builds the libraries (vfs without its frontends) for Windows: x86_64-pc-windows-gnu.
#
#   scripts/check-windows.sh          compiles every line of them; `make check-windows`
#   scripts/check-windows.sh build    generates their code too
#   scripts/check-windows.sh test     runs the unit tests of storage and agent with wine64, if it is installed
#
# What builds here has not run on Windows: none is at hand, and wine is not one. Debian's compiler
# (scripts/bootstrap.sh --windows) has no standard library for Windows but the source of one, so that is
# built first. The rustup compiler that builds everything else is not touched: this one's output has a
# directory of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

verb=${1:-check}
case "$verb" in
  check | build) parts=std,panic_unwind kinds=() crates="storage pst vfs sync agent" ;;
  test) parts=std,panic_unwind,test kinds=(--no-run) crates="storage agent" ;;
  *) echo "check-windows: unknown verb $verb; usage: scripts/check-windows.sh [check|build|test]" >&2; exit 2 ;;
esac
scripts/bootstrap.sh --windows

# Debian's, whatever rustup has put before it on the path.
export PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
unset RUSTUP_TOOLCHAIN RUSTC_WRAPPER
# The standard library is built by flags that only a nightly compiler would take otherwise.
export RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=${WINDOWS_TARGET_DIR:-target/windows}
export CC_x86_64_pc_windows_gnu=x86_64-w64-mingw32-gcc-posix
export AR_x86_64_pc_windows_gnu=x86_64-w64-mingw32-ar
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc-posix
# Some of them can be named: WINDOWS_CRATES="storage vfs".
packages=()
for crate in ${WINDOWS_CRATES:-$crates}; do
  packages+=(-p "pstsyncd-$crate")
done
if [ "$verb" = test ]; then
  wine=$(command -v wine64 || ls /usr/lib/wine/wine64 2>/dev/null || true)
  if [ -z "$wine" ]; then
    echo "check-windows: there is no wine64 (apt-get install --no-install-recommends wine64)" >&2
    exit 1
  fi
fi
# Never in the way of other work on the machine.
nice -n 15 /usr/bin/cargo "$verb" --locked -Z "build-std=$parts" "${kinds[@]}" \
  -Z warnings --config 'build.warnings="deny"' \
  --target x86_64-pc-windows-gnu --lib "${packages[@]}" 2>&1 | tee "$CARGO_TARGET_DIR.log"
if [ "$verb" = test ]; then
  # The standard library asks for random bytes by a name that wine 8 does not have.
  stub=$(mktemp -d)
  trap 'rm -rf "$stub"' EXIT
  cat >"$stub/prng.c" <<'END'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, (ULONG)n); }
END
  programs=$CARGO_TARGET_DIR/x86_64-pc-windows-gnu/debug/deps
  x86_64-w64-mingw32-gcc-posix -shared -o "$programs/bcryptprimitives.dll" "$stub/prng.c" -ladvapi32
  export WINEPREFIX=$PWD/$CARGO_TARGET_DIR/wine WINEDEBUG=-all
  sed -nE 's/.*Executable .*\((.*\.exe)\)/\1/p' "$CARGO_TARGET_DIR.log" | while read -r program; do
    nice -n 15 "$wine" "$program" --test-threads 1 </dev/null
  done
fi
echo "check-windows: passed ($verb)"
