#!/bin/bash
# Builds the tests of the merge core for 64-bit ARM and runs them in qemu, on a Debian machine of another kind.
#
#   aarch64_check.sh WORK [options and test names of `cargo test`]     default: kernels, checkpoints and merges
#
# Compiler, standard library, C compiler and emulator are Debian packages, unpacked into WORK (1.2 GB) and not installed; what is
# installed stays as it is. Debian's `rustc-web` must be at least the version that Cargo.toml asks for. Built without the embedded
# evaluator. The bits of tests/golden/digests.txt were recorded on x86-64: a pass shows that ARM computes the same ones.
set -euo pipefail
work=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
root=$work/unpacked/usr
target=aarch64-unknown-linux-gnu

fetch() {
  local lists=$work/apt/lists cache=$work/apt/cache
  mkdir -p "$lists/partial" "$cache/archives/partial" "$work/debs"
  local options=(-o "Dir::State::lists=$lists" -o "Dir::Cache=$cache" -o APT::Architectures::=amd64 -o APT::Architectures::=arm64)
  apt-get "${options[@]}" update -qq
  depends() { apt-cache "${options[@]}" depends "$@" | awk '$1 == "Depends:" { print $2 }'; }
  local std llvm cross
  std=$(depends libstd-rust-web-dev | grep '^libstd-rust-web-')
  llvm=$(depends "$std" | grep '^libllvm')
  cross=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances gcc-aarch64-linux-gnu libc6-dev-arm64-cross | grep -E '^[a-z0-9+.-]*(aarch64-linux-gnu|arm64-cross|cross-base)$')
  (cd "$work/debs" && apt-get "${options[@]}" download -qq rustc-web libstd-rust-web-dev "$std" libstd-rust-web-dev:arm64 \
    "$std:arm64" "$llvm" $cross libbinutils binutils-common libjansson4 qemu-user-static)
  for package in "$work"/debs/*.deb; do
    dpkg -x "$package" "$work/unpacked"
  done
  # Linker scripts name their files by absolute paths.
  grep -lI 'GNU ld script' "$root"/aarch64-linux-gnu/lib/*.so | xargs sed -i 's#/usr/aarch64-linux-gnu/lib/##g'
}

# Programs find their libraries in WORK.
wrap() {
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$root/lib/x86_64-linux-gnu" "$root/bin/$1" > "$work/$1"
  chmod +x "$work/$1"
}

[ -x "$root/bin/qemu-aarch64-static" ] || fetch
for program in rustc aarch64-linux-gnu-gcc aarch64-linux-gnu-ar; do
  wrap "$program"
done
export RUSTC=$work/rustc CARGO_TARGET_DIR=$work/target CARGO_INCREMENTAL=0
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$work/aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$root/bin/qemu-aarch64-static -L $root/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=$work/aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=$work/aarch64-linux-gnu-ar
"$RUSTC" --version
if [ $# -eq 0 ]; then
  # Tests that start the program are left out: the kernel cannot run it without the emulator.
  scripts/aarch64_check.sh "$work" --lib -- merge:: checkpoint::
  set -- --test golden_bits --test golden_merges --test merge --test peft_adapters
fi
exec cargo test --release --no-default-features --target "$target" "$@"
