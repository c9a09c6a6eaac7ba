#!/usr/bin/env bash
# Builds the image of Containerfile on a base made here, converts it for Charliecloud, and runs it: without a network,
# read-only, as another user, and in the steps of a real SLURM, where it must come to the same bytes as without.
#
#   bash tests/container.sh [FOLDER]     FOLDER keeps tlbatch.tar and tlbatch.sqfs
#
# Installs what it needs, needs root on Debian or Ubuntu, a package index, 35 GB of $TMPDIR and a quarter of an hour.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "${1:-}" ] || mkdir -p -- "$1"
keep=${1:+$(realpath -- "$1")}

fail() { echo "error: $*" >&2; exit 2; }

install_packages() {
  local packages=(buildah charliecloud-runtime debootstrap squashfs-tools squashfuse slurm-wlm munge python3-venv)
  dpkg --status "${packages[@]}" > /dev/null 2>&1 && return
  echo "installing ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
}

if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  fail "the image is built and run only as root on Debian or Ubuntu; elsewhere, podman build --tag tlbatch ."
fi
export PATH="$PATH:/usr/sbin:/sbin" OMP_NUM_THREADS=1
install_packages
[ -c /dev/fuse ] || mknod /dev/fuse c 10 229
fuse=$(stat --format=%a /dev/fuse)
chmod 666 /dev/fuse

scratch=$(mktemp -d -t tlbatch-container-XXXXXX)
chmod 711 "$scratch"
clean() {
  local mounts
  chmod "$fuse" /dev/fuse
  mounts=$(cut -d ' ' -f 2 /proc/mounts | grep "^$scratch/" | sort --reverse || true)
  [ -z "$mounts" ] || xargs umount --lazy <<< "$mounts"
  rm -rf --one-file-system "$scratch"
}
trap clean EXIT
export TMPDIR=$scratch/tmp BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay
mkdir -p "$TMPDIR" "$scratch/base" "$scratch/mount"
chmod 1777 "$TMPDIR"

build() { buildah --root "$scratch/$STORAGE_DRIVER" --runroot "$scratch/run" "$@"; }
build info > /dev/null 2>&1 || STORAGE_DRIVER=vfs
build info > /dev/null

timed() { # WHAT COMMAND...
  local start=$SECONDS
  "${@:2}"
  echo "$((SECONDS - start)) s: $1"
}

make_base() { # a minimal Debian or Ubuntu that trusts and reads what this machine does
  local container suite mirror file settings=()
  # shellcheck source=/dev/null
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" 'Created-By: Packages' | sed -n 1p)
  eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
  http_proxy=${http_proxy:-} debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$suite" "$scratch/base" ${mirror:+"$mirror"} > "$scratch/log" || { cat "$scratch/log"; return 1; }
  for file in /usr/local/share/ca-certificates /etc/ssl/certs /etc/pip.conf /root/.config/pip/pip.conf; do
    [ ! -e "$file" ] || (cd / && cp --archive --parents -- "${file#/}" "$scratch/base")
  done
  while read -r file; do settings+=(--env "$file"); done \
    < <(env | grep -iE '^(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE=|https?_proxy=|no_proxy=)')
  container=$(build from scratch)
  build add --quiet "$container" "$scratch/base" / > /dev/null
  build config "${settings[@]}" --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  build commit --quiet --rm "$container" localhost/base > /dev/null
  rm -rf --one-file-system "$scratch/base"
}

make_image() {
  local layers=--layers
  [ "$STORAGE_DRIVER" = overlay ] || layers= # vfs would copy everything for each
  build build $layers --tag tlbatch --build-arg BASE=localhost/base --build-arg "CREATED=$(date --utc +%FT%TZ)" \
    --build-arg "REVISION=$(git describe --always --abbrev=40 --dirty=+ --exclude='*' 2> /dev/null || true)" . \
    > "$scratch/log" 2>&1 || { cat "$scratch/log"; return 1; }
}

show_layers() {
  build push --quiet localhost/tlbatch "docker-archive:$scratch/layers.tar:localhost/tlbatch:latest"
  python3 - "$scratch/layers.tar" << 'EOF'
import json, sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    image = json.load(archive.extractfile("manifest.json"))[0]
    steps = [step["created_by"] for step in json.load(archive.extractfile(image["Config"]))["history"]
             if not step.get("empty_layer")]
    sizes = [archive.getmember(layer).size for layer in image["Layers"]]
for size, step in zip(sizes, steps, strict=True):
    print(f"{size / 1e6:8.1f} MB  layer: {step[:90]}")
print(f"{sum(sizes) / 1e6:8.1f} MB  {len(sizes)} layers")
EOF
  rm "$scratch/layers.tar"
}

export_image() { # as podman export does
  local container
  container=$(build from localhost/tlbatch)
  tar --create --file "$scratch/tlbatch.tar" --directory "$(build mount "$container")" \
    --exclude=./etc/pip.conf --exclude=./root/.config .
  build rm "$container" > /dev/null
}

make_environments() { # one of the system's Python, which is that of the image, and one to submit with
  TLBATCH_PYTHON=/usr/bin/python3 TLBATCH_ENV=$scratch/env bash slurm/env.sh dev,quickstart,export > /dev/null
  TLBATCH_PYTHON=/usr/bin/python3 TLBATCH_ENV=$scratch/host bash slurm/env.sh host > /dev/null
}

convert() {
  "$scratch/host/bin/python" -m tlbatch.container_image "$scratch/tlbatch.tar" "charliecloud:$scratch/tlbatch.sqfs"
}

run_from_host() { # the embedded job with fewer images, then a night
  local own=(data.synthetic.images_per_grade=10 "workspace=$scratch/space") night
  night=(tests/tiny.toml data.source=synthetic "slurm.container=charliecloud:$scratch/tlbatch.sqfs")
  TLBATCH_ENV=$scratch/host TLBATCH_CONTAINER=charliecloud:$scratch/tlbatch.sqfs bash slurm/finetune.sh "${own[@]}" \
    > "$scratch/log" 2>&1 || { cat "$scratch/log"; return 1; }
  [ -s "$scratch/space/runs/comparison.html" ] || { cat "$scratch/log"; return 1; }
  "$scratch/host/bin/python" -m tlbatch.nightly --local "${night[@]}" "${own[@]}" > "$scratch/log" 2>&1 ||
    { cat "$scratch/log"; return 1; }
  grep --quiet "night's page" "$scratch/log" || { cat "$scratch/log"; return 1; }
}

run_in_steps() {
  TLBATCH_TEST_CONTAINER=$scratch/tlbatch.sqfs TLBATCH_REQUIRE_SLURM=1 \
    "$scratch/env/bin/python" -m pytest -p no:cacheprovider -q -m cluster tests/integration/test_container.py
}

inside() { # UID ARGUMENT...: tlbatch's python with no network, and only /mnt and /tmp to write to
  local uid=$1 folder=$scratch/user$1
  mkdir -p "$folder/mount" "$folder/mnt"
  cp tests/tiny.toml tests/container_check.py "$folder/mnt"
  chown -R "$uid:$uid" "$folder"
  unshare --net setpriv --reuid "$uid" --regid "$uid" --clear-groups \
    env --ignore-environment PATH="$PATH" USER=nobody OMP_NUM_THREADS=1 TRITON_CACHE_DIR=/tmp/triton \
    ch-run --mount="$folder/mount" --private-tmp --bind="$folder/mnt:/mnt" "$scratch/tlbatch.sqfs" -- \
    /opt/tlbatch/bin/python "${@:2}"
}

check_inside() {
  local uid out
  for uid in 0 12345; do
    inside "$uid" -m tlbatch.submit --help > /dev/null
    out=$(inside "$uid" -m tlbatch.submit --local /mnt/tiny.toml workspace=/mnt/workspace run=tiny data.source=synthetic \
      data.synthetic.images_per_grade=10 'data.group_pattern=^(\d+)_' 2>&1) || { echo "$out"; return 1; }
    [ -s "$scratch/user$uid/mnt/workspace/runs/tiny/report/report.html" ] || { echo "$out"; return 1; }
    out=$(inside "$uid" -c 'open("/opt/tlbatch/written", "w")' 2>&1 || true)
    grep --quiet 'Read-only file system' <<< "$out" || { echo "$out"; return 1; }
  done
  inside 12345 /mnt/container_check.py /mnt
}

timed "base" make_base
timed "image, on $STORAGE_DRIVER" make_image
timed "layers" show_layers
timed "export" export_image
timed "environments without a container" make_environments
timed "SquashFS, by tlbatch.container_image" convert
timed "runs without a network, as root and another user" check_inside
timed "the embedded job and a night, submitted without torch" run_from_host
timed "two nodes of SLURM" run_in_steps
[ -z "$keep" ] || mv -- "$scratch/tlbatch.tar" "$scratch/tlbatch.sqfs" "$keep"
