#!/bin/sh
# `make native-check`: compiles csrc/ with all warnings as errors, then runs decode_check.cpp and kernels_check.cpp
# under AddressSanitizer and UndefinedBehaviorSanitizer, and decode_check.cpp under ThreadSanitizer and on ARM by QEMU.
set -eu
cd "$(dirname "$0")"
csrc=../../../src/groundling/sample/native/csrc
cxx=${CXX:-g++}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

floating_point="-ffp-contract=off -fno-math-errno -fno-trapping-math" # as in native/build.py
flags="-std=c++20 $floating_point -pthread -I $csrc"
warnings="-Wall -Wextra -Wconversion -Wshadow -Werror"
case $(uname -m) in
    x86_64) native=-march=native targets="-march=x86-64 -march=haswell -march=x86-64-v4" ;;
    *) native=-mcpu=native targets= ;;
esac

for target in $native $targets; do
    echo "warnings: $target"
    # GCC 12 takes _mm512_undefined_ps in its own AVX-512 header for an uninitialized variable (GCC bug 105593).
    header_bug=
    if $cxx "$target" -dM -E -x c++ /dev/null | grep -q __AVX512F__; then header_bug=-Wno-maybe-uninitialized; fi
    $cxx $flags -O3 "$target" $warnings $header_bug -shared -fPIC "$csrc/decode.cpp" -o "$build/decode.so"
done

run() { # NAME OPTIONS SOURCES...
    name=$1 options=$2
    shift 2
    echo "$name: $*"
    $cxx $flags -O1 -g -fno-omit-frame-pointer "$native" $options "$@" -o "$build/check"
    "$build/check"
}
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
address_and_undefined="-fsanitize=address,undefined -fno-sanitize-recover=all"
run "address, undefined" "$address_and_undefined" kernels_check.cpp
run "address, undefined" "$address_and_undefined" decode_check.cpp "$csrc/decode.cpp"
run "thread" "-fsanitize=thread" decode_check.cpp "$csrc/decode.cpp"

if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
    echo "ARM under QEMU: decode_check.cpp $csrc/decode.cpp"
    aarch64-linux-gnu-g++ $flags -O3 -static $warnings decode_check.cpp "$csrc/decode.cpp" -o "$build/check"
    qemu-aarch64 "$build/check"
else
    echo "ARM: skipped, because g++-aarch64-linux-gnu or qemu-user is missing"
fi
echo "native-check: passed"
