# What the scripts share: where the tree is, what a machine needs, and how long each part took. Sourced, not run.
# shellcheck shell=bash
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"
export KEELSON_BIN_DIR=${KEELSON_BIN_DIR:-$top/target/x86_64-unknown-linux-gnu/release}
export KEELSON_IMAGE_DIR=${KEELSON_IMAGE_DIR:-$top/build}

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'keelson: %s\n' "$*" >&2; exit 1; }

# Runs a group of work and remembers its seconds.
timings=()
group() {
    local name=$1 begun=$SECONDS
    shift
    say "$name"
    "$@" || { print_timings; fail "$name failed"; }
    timings+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$name")")
}
print_timings() {
    [ ${#timings[@]} -eq 0 ] || { say "seconds per group"; printf '%s\n' "${timings[@]}"; }
}

# Tools and the Debian or Ubuntu package that brings each: `command:package`.
build_tools="gcc:gcc ld:binutils dpkg-deb:dpkg apt-get:apt gpgv:gpgv mkfs.ext4:e2fsprogs"
lab_tools="qemu-system-x86_64:qemu-system-x86 ip:iproute2 unshare:util-linux setpriv:util-linux curl:curl"

ensure_tools() {
    local missing=() pair tool
    for pair in $1; do
        tool=${pair%%:*}
        PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing+=("${pair#*:}")
    done
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    [ ${#missing[@]} -eq 0 ] && return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    install_packages "${missing[@]}"
}

install_packages() {
    command -v apt-get >/dev/null || fail "these are missing, and there is no apt-get to install them with: $*"
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "these packages are missing: $*
Neither root nor sudo is there to install them. As root:  apt-get install --no-install-recommends $*"
        sudo=(sudo)
    fi
    say "installing: $*"
    "${sudo[@]}" apt-get update -qq || fail "apt-get update failed; the packages $* are missing"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install: $*"
}

# The lowest Rust that builds Keelson, from the workspace itself.
rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }
rust_is_new_enough() {
    command -v cargo >/dev/null || return 1
    local have
    have=$(cargo --version 2>/dev/null | awk '{print $2}') || return 1
    [ "$(printf '%s\n%s\n' "$(rust_wanted)" "$have" | sort -V | head -n 1)" = "$(rust_wanted)" ]
}
ensure_rust() {
    export PATH=$HOME/.cargo/bin:$PATH
    rust_is_new_enough && return 0
    local candidate
    if command -v apt-cache >/dev/null; then
        [ "$(id -u)" != 0 ] || apt-get update -qq
        candidate=$(apt-cache policy cargo 2>/dev/null | awk '/Candidate:/{print $2}')
        if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$(rust_wanted)"; then
            install_packages cargo
        elif apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            install_packages rustup
            rustup toolchain install stable --profile minimal -c clippy -c rustfmt || true
        fi
    fi
    hash -r
    rust_is_new_enough || fail "Rust $(rust_wanted) or newer is needed and this distribution has none. Type:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
}

host_crates=(-p keelson-init -p keelson-netcfg -p keelson-hostd -p keelson-dcui -p keelson-vmm)
build_release() { cargo build --release --locked "${host_crates[@]}" -p keelctl -p keelson-image -p keelson-lab "$@"; }

# The image, the firmware for emulated servers and the stock guest; each is made anew only where an input changed.
build_image() {
    "$KEELSON_BIN_DIR/keelson-image" build --bin-dir "$KEELSON_BIN_DIR" --out "$KEELSON_IMAGE_DIR"
    "$KEELSON_BIN_DIR/keelson-image" fetch ovmf --out "$KEELSON_IMAGE_DIR/ovmf"
    "$KEELSON_BIN_DIR/keelson-image" fetch guest-kernel --out "$KEELSON_IMAGE_DIR/guest"
}

# The lab works in namespaces: as root directly, otherwise in a user namespace where the kernel allows that.
in_lab() {
    if [ "$(id -u)" = 0 ]; then "$@"; else unshare --user --map-root-user --mount "$@"; fi
}
