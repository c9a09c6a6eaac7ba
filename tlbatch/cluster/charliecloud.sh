#!/usr/bin/env bash
# Run a command in a Charliecloud image with only these folders and files of the host mounted, at their own paths.
#
#   bash charliecloud.sh IMAGE [ro:PATH|rw:PATH ...] -- [OPTION ...] -- COMMAND...
#
# ch-run cannot mount read-only, and mounts only onto folders that the image has. So this script first builds a tree of
# mounts in its own mount namespace, then gives ch-run the top-level folders; the image needs no others.
set -euo pipefail

fail() {
  echo "error: slurm.container: on ${HOSTNAME:-this node}, $*" >&2
  exit 2
}

if [ "$1" != --mapped ]; then
  unshare --user --map-root-user --mount true ||
    fail "users cannot create namespaces, which Charliecloud needs; ask the site, or choose another runtime"
  export USER="${USER:-$(id -u)}"
  exec unshare --user --map-root-user --mount bash "$0" --mapped "$(id -u)" "$(id -g)" "$@"
fi
uid=$2 gid=$3 image=$4 mounts=() options=()
shift 4
while [ "$1" != -- ]; do mounts+=("$1") && shift; done
shift
while [ "$1" != -- ]; do options+=("$1") && shift; done
shift

[ -f "$image" ] || fail "there is no image $image; name one that all nodes can read"
export TMPDIR=${TMPDIR:-/tmp}
case "$TMPDIR/" in
  /dev/shm/*) ;; # shared with the container anyway
  /bin/* | /dev/* | /etc/* | /lib*/* | /opt/* | /proc/* | /sbin/* | /sys/* | /usr/*)
    fail "TMPDIR=$TMPDIR lies in a folder that the image has itself; set TMPDIR to another folder" ;;
  /*) [ -d "$TMPDIR" ] || fail "TMPDIR=$TMPDIR does not exist; set TMPDIR to a folder" && mounts+=("rw:$TMPDIR") ;;
  *) fail "TMPDIR=$TMPDIR is not an absolute path; set TMPDIR to one" ;;
esac

# Find an existing folder for the tree whose contents the mounts do not need.
for tree in /boot /srv /media /mnt /root; do
  used=
  for mount in "ro:$image" "${mounts[@]}"; do case "${mount#*:}/" in "$tree"/*) used=1 ;; esac; done
  if [ -d "$tree" ] && [ -z "$used" ]; then break; fi
done

# Add a path of the host to the tree, over what is mounted there already.
put() { # ro|rw PATH
  local options place
  [ -e "$2" ] || fail "there is no $2, which the job names; fix the path, or slurm.mounts"
  place=$(realpath --canonicalize-missing -- "$tree$2")
  if [ "${place#"$tree"/}" = "$place" ]; then # it leads through a link in a mounted folder: mount the target too
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
  if [ "$1" = ro ]; then # with everything mounted below it
    while read -r options place; do
      mount -o "remount,bind,${options/#rw/ro}" "$place" ||
        fail "$place cannot be mounted read-only; choose another path, or another runtime"
    done <<< "$(findmnt --noheadings --list --submounts --output VFS-OPTIONS,TARGET "$tree$2")"
  fi
}

mapfile -d '' sorted < <(printf '%s\0' "${mounts[@]}" | LC_ALL=C sort --zero-terminated --field-separator=: --key=2)
wait "$!" # ch-run would mistake the exit of another child for that of its container
mount -t tmpfs -o mode=755 tmpfs "$tree"
mkdir "$tree/.image"
tops=()
for mount in "${sorted[@]}"; do [ -z "$mount" ] || put "${mount%%:*}" "${mount#*:}"; done
mount -o remount,bind,ro "$tree" # so that nothing is written where it would be lost
declare -A binds
for top in "${tops[@]}"; do binds[$top]="--bind=$tree/$top:/$top"; done
exec ch-run --mount="$tree/.image" --uid="$uid" --gid="$gid" "${binds[@]}" "${options[@]}" "$image" -- "$@"
