#!/usr/bin/env bash
# A run on the hosts of a TPU slice (Cloud TPU VMs). Needs gcloud, logged in, with a project and a zone set or given by CXR_JAX_GCLOUD.
#
#   bash launch/tpu.sh setup NAME                        copies this checkout to every host of the slice NAME and makes its environment there
#   bash launch/tpu.sh run NAME -- --config=configs/race.py:mimic --workdir=DIR …      starts the run on all hosts, in the background
#   bash launch/tpu.sh log NAME                          follows what the first host prints
#   bash launch/tpu.sh stop NAME                         tells all to save and leave; the same `run` goes on
#   bash launch/tpu.sh status NAME DIR                   cxr_jax.status of a folder, from the first host
#
# DIR, raw_dir and data_dir lie on a file system that every host has mounted at the same place. With CXR_JAX_PRINT=1 it says what it would do, and does nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 1; }
fail() { printf 'tpu.sh: %s\n' "$*" >&2; exit 1; }
[ $# -ge 2 ] || usage
what=$1 name=$2; shift 2
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$name: the name of a TPU expected, as gcloud lists it"

do_it() { if [ -n "${CXR_JAX_PRINT:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
# $1: all, or the number of a host. $2: a command for its shell.
there() { do_it gcloud compute tpus tpu-vm ssh "$name" ${CXR_JAX_GCLOUD:-} --worker="$1" --command="$2"; }

case $what in
  setup)
    [ $# = 0 ] || usage
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    # What is committed, by its commit; nothing else leaves this machine.
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$name:cxr_jax.tar.gz" ${CXR_JAX_GCLOUD:-} --worker=all
    there all "mkdir -p cxr_jax && rm -rf cxr_jax/{cxr_jax,configs,tfds_builders,launch} && tar -xzf cxr_jax.tar.gz -C cxr_jax && cd cxr_jax && CXR_JAX_ACCELERATOR=tpu bash launch/local.sh true"
    ;;
  run)
    [ "${1:-}" = -- ] || usage
    shift
    [ $# -gt 0 ] || usage
    # JAX finds the other hosts by the slice's own metadata. Its own session, so that the run outlives the connection.
    flags=$(printf '%q ' "$@")
    commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || true)
    there all "cd cxr_jax || exit; if [ -s run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then echo 'a run is under way here; stop it first' >&2; exit 1; fi
CXR_JAX_COMMIT=$commit CXR_JAX_ACCELERATOR=tpu setsid bash launch/local.sh python -m cxr_jax.main --distributed $flags >>run.log 2>&1 </dev/null &
echo \$! >run.pid"
    ;;
  log) there 0 "tail -n 50 -f cxr_jax/run.log" ;;
  stop) there all "kill -TERM \$(cat cxr_jax/run.pid)" ;;
  status)
    [ $# = 1 ] || usage
    there 0 "cd cxr_jax && CXR_JAX_ACCELERATOR=tpu bash launch/local.sh python -m cxr_jax.status $(printf '%q' "$1")"
    ;;
  *) usage ;;
esac
