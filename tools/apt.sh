# To be sourced: installs system packages, where that is permitted, else says what to install.
#
#   apt_install NAME PACKAGE...     NAME: of the script, for messages

apt_install() {
    local name=$1 advice sudo=()
    shift
    advice="missing: apt-get install $*"
    if [ -n "${IPYTHON_ISOLATION_NO_APT:-}" ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$name: $advice" >&2
        return 1
    elif [ "$(id -u)" = 0 ]; then
        sudo=()
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo=(sudo -n)
    else
        echo "$name: $advice (as root)" >&2
        return 1
    fi
    echo "$name: installing $*"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -qq || true # what is known already may do
    "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null || {
        echo "$name: apt-get failed; $advice" >&2
        return 1
    }
}
