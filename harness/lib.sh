# SPDX-License-Identifier: GPL-2.0-only
# Sourced by every shell script of the harness: paths, messages, private apt,
# a git that ignores its user's configuration.

set -euo pipefail
export LC_ALL=C
unset MAKEFLAGS MFLAGS MAKEOVERRIDES	# a "make -s" outside is not for the kernel

H=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
TOP=${H%/*}
CACHE=${KVM_GPC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvm-gpc}
BUILD=${KVM_GPC_BUILD:-$TOP/build}
JOBS=${JOBS:-$(nproc)}

# The kernel's folders at the top of this repository.
FOLDERS="virt arch include tools Documentation"

# shellcheck source=harness/base.conf
. "$H/base.conf"

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_space DIR MIB WHAT
need_space()
{
	local have

	mkdir -p "$1"
	have=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
	[ "$have" -ge "$2" ] ||
		die "no disk space for $3: $1 has $have MiB free, $2 MiB are needed"
}

# A directory that vanishes with the script, whatever ends it.
scratch_dirs=()
remove_scratch() { [ ${#scratch_dirs[@]} -eq 0 ] || rm -rf "${scratch_dirs[@]}"; }
trap remove_scratch EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
scratch()	# scratch VARIABLE PARENT
{
	mkdir -p "$2"
	printf -v "$1" %s "$(mktemp -d "$2/tmp.XXXXXX")"
	scratch_dirs+=("${!1}")
}

# git as the harness uses it must give the same bytes for everybody.
export GIT_CONFIG_NOSYSTEM=1
pgit()
{
	GIT_CONFIG_GLOBAL=/dev/null git \
		-c user.name=kvm-gpc -c user.email=kvm-gpc@localhost \
		-c gc.auto=0 -c maintenance.auto=false -c core.fsync=none \
		-c advice.detachedHead=false -c init.defaultBranch=base \
		-c core.autocrlf=false -c safe.directory='*' \
		-c protocol.file.allow=always "$@"
}

as_root()
{
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "'$1' must run as root and there is no sudo"
	fi
}

# The Debian mirror that this machine itself uses.
debian_mirror()
{
	local code

	if [ -n "${MIRROR:-}" ]; then
		echo "$MIRROR"
		return
	fi
	code=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	apt-get indextargets --format '$(RELEASE) $(REPO_URI)' \
		'Created-By: Packages' 2>/dev/null |
		awk -v c="$code" '$1 == c || $1 ~ /^(old)*stable$/ { print $2; exit }'
}

# private_apt DIR SUITE...: an apt configuration that has the suites named as
# its only sources and shares nothing with the machine's own but the keys and
# the list of what is installed.  Sets APT_CONFIG.
private_apt()
{
	local dir=$1 mirror suite
	shift

	mirror=$(debian_mirror)
	[ -n "$mirror" ] ||
		die "apt's sources name no Debian mirror; give one as MIRROR=http://..."
	mkdir -p "$dir/parts" "$dir/lists/partial" "$dir/cache/archives/partial"
	for suite; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
	done > "$dir/sources.list"
	cat > "$dir/apt.conf" <<-EOF
	Dir::Etc::sourcelist "$dir/sources.list";
	Dir::Etc::sourceparts "$dir/parts";
	Dir::State::lists "$dir/lists";
	Dir::Cache "$dir/cache";
	Acquire::Languages "none";
	Acquire::Retries "3";
	APT::Sandbox::User "root";
	APT::Get::List-Cleanup "false";
	EOF
	export APT_CONFIG=$dir/apt.conf
}

# logged LABEL LOG COMMAND...: run with its output in LOG, a line of progress
# every half minute, the end of the log on failure.
logged()
{
	local label=$1 log=$2 pid t0=$SECONDS rc=0
	shift 2

	mkdir -p "${log%/*}"
	"$@" > "$log" 2>&1 &
	pid=$!
	(
		trap 'kill $! 2>/dev/null; exit 0' TERM
		while :; do
			sleep 30 & wait $!
			say "$label: $((SECONDS - t0)) s, $(wc -l < "$log") lines," \
			    "$(tail -n 1 "$log" | cut -c 1-50)"
		done
	) &
	local progress=$!
	wait $pid || rc=$?
	kill $progress 2>/dev/null
	wait $progress 2>/dev/null || :
	if [ $rc != 0 ]; then
		grep -nE '(error|Error|undefined reference|warning):' "$log" | head -n 20 >&2 || :
		tail -n 15 "$log" >&2
		die "$label failed after $((SECONDS - t0)) s; the whole log: $log"
	fi
	say "$label: done in $((SECONDS - t0)) s"
}
