#!/usr/bin/env bash
# Run a command in a Charliecloud image with just these folders and files of the host mounted, at their own paths.
#
#   bash charliecloud.sh IMAGE [ro:PATH|rw:PATH ...] -- [OPTION ...] -- COMMAND...
#
# ch-run itself mounts nothing read-only, and only onto folders that the image has. So a tree of mounts is put together
# first, in a mount namespace of this process, and ch-run is given its top folders; the image needs no more than those.
set -euo pipefail

fail() {
  echo "error: slurm.container: on ${HOSTNAME:-this node}, $*" >&2
  exit 2
}

if [ "$1" != --mapped ]; then
  unshare --user --map-root-user --mount true ||
    fail "users may make no namespaces, which Charliecloud needs; ask the site, or name another runtime"
  export USER="${USER:-$(id -u)}"
  exec unshare --user --map-root-user --mount bash "$0" --mapped "$(id -u)" "$(id -g)" "$@"
fi
uid=$2 gid=$3 image=$4 mounts=() options=()
shift 4
while [ "$1" != -- ]; do mounts+=("$1") && shift; done
shift
while [ "$1" != -- ]; do options+=("$1") && shift; done
shift

[ -f "$image" ] || fail "there is no image $image; name one that all nodes see"
export TMPDIR=${TMPDIR:-/tmp}
case "$TMPDIR/" in
  /dev/shm/*) ;; # seen inside as it is
  /bin/* | /dev/* | /etc/* | /lib*/* | /opt/* | /proc/* | /sbin/* | /sys/* | /usr/*)
    fail "TMPDIR=$TMPDIR lies in a folder that the image has itself; set TMPDIR to another" ;;
  /*) [ -d "$TMPDIR" ] || fail "TMPDIR=$TMPDIR is not there; set TMPDIR to a folder" && mounts+=("rw:$TMPDIR") ;;
  *) fail "TMPDIR=$TMPDIR is no whole path; set TMPDIR to one" ;;
esac

# A folder that is here and hides nothing that is needed, where the tree can be put together.
for tree in /boot /srv /media /mnt /root; do
  used=
  for mount in "ro:$image" "${mounts[@]}"; do case "${mount#*:}/" in "$tree"/*) used=1 ;; esac; done
  if [ -d "$tree" ] && [ -z "$used" ]; then break; fi
done

# Puts a path of the host into the tree, above what is mounted there already.
put() { # ro|rw PATH
  local options place
  [ -e "$2" ] || fail "there is no $2, which the job names; mend it, or slurm.mounts"
  place=$(realpath --canonicalize-missing -- "$tree$2")
  if [ "${place#"$tree"/}" = "$place" ]; then # by a link in a folder that is mounted: its target is to be there too
    put "$1" "$(realpath -- "$2")"
    return
  fi
  if [ -d "$2" ]; then
    mkdir -p "$tree$2"
  else
    mkdir -p "$tree$(dirname -- "$2")"
    [ -e "$tree$2" ] || : > "$tree$2"
  fi
  mount --rbind "$2" "$tree$2"
  top=${2#/}
  tops+=("${top%%/*}")
  if [ "$1" = ro ]; then # and what is mounted below it
    while read -r options place; do
      mount -o "remount,bind,${options/#rw/ro}" "$place" || fail "$place cannot be mounted read-only"
    done <<< "$(findmnt --noheadings --list --submounts --output VFS-OPTIONS,TARGET "$tree$2")"
  fi
}

mapfile -d '' sorted < <(printf '%s\0' "${mounts[@]}" | LC_ALL=C sort --zero-terminated --field-separator=: --key=2)
wait "$!" # ch-run would take the end of any other child for that of its container
mount -t tmpfs -o mode=755 tmpfs "$tree"
mkdir "$tree/.image"
tops=()
for mount in "${sorted[@]}"; do [ -z "$mount" ] || put "${mount%%:*}" "${mount#*:}"; done
mount -o remount,bind,ro "$tree" # so that nothing is written to where it would be lost
declare -A binds
for top in "${tops[@]}"; do binds[$top]="--bind=$tree/$top:/$top"; done
exec ch-run --mount="$tree/.image" --uid="$uid" --gid="$gid" "${binds[@]}" "${options[@]}" "$image" -- "$@"
