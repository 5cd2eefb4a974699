#!/usr/bin/env bash
# Builds the libraries (vfs without its frontends) for Windows: x86_64-pc-windows-gnu.
#
#   scripts/check-windows.sh          compiles every line of them; `make check-windows`
#   scripts/check-windows.sh build    generates their code too
#
# What builds here has not run: no Windows is at hand. Debian's compiler (scripts/bootstrap.sh --windows)
# has no standard library for Windows but the source of one, so that is built first. The rustup
# compiler that builds everything else is not touched: this one's output has a directory of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

verb=${1:-check}
case "$verb" in
  check | build) ;;
  *) echo "check-windows: unknown verb $verb; usage: scripts/check-windows.sh [check|build]" >&2; exit 2 ;;
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
# Some of them can be named: WINDOWS_CRATES="pstsyncd-storage pstsyncd-vfs".
crates=()
for crate in ${WINDOWS_CRATES:-pstsyncd-storage pstsyncd-pst pstsyncd-vfs pstsyncd-sync pstsyncd-agent}; do
  crates+=(-p "$crate")
done
# Never in the way of other work on the machine.
nice -n 15 /usr/bin/cargo "$verb" --locked -Z build-std=std,panic_unwind \
  -Z warnings --config 'build.warnings="deny"' \
  --target x86_64-pc-windows-gnu --lib "${crates[@]}"
echo "check-windows: passed ($verb)"
