#!/usr/bin/env bash
# Run a command in a Charliecloud image with just these folders and files of the host mounted, at their own paths.
#
#   bash charliecloud.sh IMAGE [ro:PATH|rw:PATH ...] -- [OPTION ...] -- COMMAND...
#
# ch-run itself mounts nothing read-only, and only onto folders that the image has. So a tree of mounts is put together
# first, in a mount namespace of this process, and ch-run is given its top folders; the image needs no more than those.
set -euo pipefail

if [ -z "${TLBATCH_IDS:-}" ]; then
  TLBATCH_IDS="$(id -u) $(id -g)"
  export TLBATCH_IDS USER="${USER:-$(id -u)}"
  exec unshare --user --map-root-user --mount bash "$0" "$@"
fi
image=$1 mounts=() options=()
shift
while [ "$1" != -- ]; do mounts+=("$1") && shift; done
shift
while [ "$1" != -- ]; do options+=("$1") && shift; done
shift

# Puts a path of the host into the tree, above what is mounted there already.
put() { # ro|rw PATH
  if [ -d "$2" ]; then
    mkdir -p "$tree$2"
  else
    mkdir -p "$tree$(dirname "$2")"
    [ -e "$tree$2" ] || : > "$tree$2"
  fi
  mount --rbind "$2" "$tree$2"
  if [ "$1" = ro ]; then
    mount -o "remount,bind,$(findmnt --noheadings --output VFS-OPTIONS --target "$2" | tail -n 1 | sed 's/^rw/ro/')" "$tree$2"
  fi
}

read -r uid gid <<< "$TLBATCH_IDS"
unset TLBATCH_IDS
tree=${TMPDIR:-/tmp}/tlbatch-$uid.mounts
mkdir -p "$tree"
mount -t tmpfs -o mode=755 tmpfs "$tree"
mkdir "$tree/.image"
tops=()
while IFS= read -r -d '' mount; do
  path=${mount#*:}
  put "${mount%%:*}" "$path"
  top=${path#/}
  tops+=("${top%%/*}")
done < <(printf '%s\0' "${mounts[@]}" | LC_ALL=C sort --zero-terminated --field-separator=: --key=2)

binds=()
while IFS= read -r -d '' top; do binds+=("--bind=$tree/$top:/$top"); done < <(printf '%s\0' "${tops[@]}" | sort -zu)
exec ch-run --mount="$tree/.image" --uid="$uid" --gid="$gid" "${binds[@]}" "${options[@]}" "$image" -- "$@"
