#!/usr/bin/env bash
# Runs a command in an environment of its own, which it makes the first time (Python 3.11, a few minutes, 3 GB).
#
#   bash launch/local.sh python -m cxr_jax.main --config=configs/race.py
#   bash launch/local.sh python -m pytest
#   bash launch/local.sh --peers python -m pytest -m peers     adds the packages that we compare with
#   bash launch/local.sh --processes=4 python -m cxr_jax.main …     four processes of one launch, each with its share of the GPUs
#
# CXR_JAX_ACCELERATOR=cpu|cuda|tpu overrides what it finds; CXR_JAX_VENV names another folder for the environment.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say() { printf 'local.sh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

peers= processes=1
while :; do
  case ${1:-} in
    --peers) peers=1; shift ;;
    --processes=*) processes=${1#*=}; shift ;;
    *) break ;;
  esac
done
case $processes in ''|*[!0-9]*|0) fail "--processes=$processes: a number of processes, 1 or more, expected" ;; esac
[ $# -gt 0 ] || fail "name a command, for example: bash launch/local.sh python -m cxr_jax.main --config=configs/race.py"

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"; return
    fi
  done
  return 1
}

# Says in one word what JAX should run on here, and on stderr why.
find_accelerator() {
  local driver
  if [ -n "${CXR_JAX_ACCELERATOR:-}" ]; then
    case $CXR_JAX_ACCELERATOR in cpu|cuda|tpu) ;; *) fail "CXR_JAX_ACCELERATOR=$CXR_JAX_ACCELERATOR: cpu, cuda or tpu" ;; esac
    say "using ${CXR_JAX_ACCELERATOR}, as CXR_JAX_ACCELERATOR says"; echo "$CXR_JAX_ACCELERATOR"; return
  fi
  if compgen -G '/dev/accel*' >/dev/null || { compgen -G '/dev/vfio/[0-9]*' >/dev/null && [ -n "${TPU_WORKER_ID:-}" ]; }; then
    say "found a TPU"; echo tpu; return
  fi
  if driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) && [ -n "$driver" ]; then
    if [ "${driver%%.*}" -ge 525 ] 2>/dev/null; then
      say "found an NVIDIA GPU (driver $driver)"; echo cuda; return
    fi
    say "found an NVIDIA GPU, but its driver $driver is older than 525, which CUDA 12 needs; running on the CPU"; echo cpu; return
  fi
  say "no accelerator found; running on the CPU"; echo cpu
}

accelerator=$(find_accelerator)
case $accelerator in cpu) requirements=requirements.txt ;; *) requirements=requirements-$accelerator.txt ;; esac
venv=${CXR_JAX_VENV:-$root/.venv-$accelerator}

# $1: name of the stamp; the rest: requirements files. Installs unless the stamp says that these very files are in place.
install() {
  local stamp=$venv/$1 sum; shift
  sum=$(cd "$root" && cat requirements.txt "$@" | cksum)
  [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    local python
    python=$(find_python) || fail "needs Python 3.11 (to 3.13); none found. Install one, or name it: PYTHON=/path/to/python3.11"
    say "making the environment $venv with $python"
    [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || fail "$venv is no environment, and is not replaced by one; name another folder with CXR_JAX_VENV"
    rm -rf "$venv"
    "$python" -m venv "$venv" || { rm -rf "$venv"; fail "could not make it; on Debian and Ubuntu, install python3-venv"; }
  fi
  say "installing $*"
  (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")) >&2 \
    || fail "installation failed (see above); the same command tries again"
  printf '%s' "$sum" >"$stamp"
}

# One at a time: a second start waits until the first has made the environment.
mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then exec 9>"$venv.lock"; flock 9; fi
install .installed "$requirements"
[ -z "$peers" ] || install .installed-peers "$requirements" requirements-peers.txt
exec 9>&-

# On a CPU, a training step takes gigabytes of memory and gives them back, every time; in huge pages that costs a fraction
# (docs/performance.md). A C library that does not know this setting passes it over.
[ "$accelerator" != cpu ] || export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
unset PYTHONHOME
[ "$processes" != 1 ] || exec "$@"

# Several processes of one launch on this machine. Each learns of the others by these variables (cxr_jax/processes.py).
JAX_COORDINATOR_ADDRESS=localhost:$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$processes
gpus=()
case $accelerator in
  tpu) fail "--processes=$processes: on a TPU host one process takes all chips" ;;
  cuda)
    # Those that are ours, where that is said; else all.
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $(($(nvidia-smi --list-gpus | wc -l) - 1)))}"
    [ $((${#gpus[@]} % processes)) = 0 ] || fail "--processes=$processes: ${#gpus[@]} GPUs cannot be shared out among them evenly"
    ;;
esac
each=$((${#gpus[@]} / processes)) pids=()
for ((i = 0; i < processes; i++)); do
  export JAX_PROCESS_ID=$i
  [ "$each" = 0 ] || CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:i * each:each}")
  [ "$each" = 0 ] || export CUDA_VISIBLE_DEVICES
  "$@" &
  pids+=($!)
done
# Ctrl-C does not reach what runs in the background; told to stop, all of them save and leave.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
# The first one's own failure says most; then that it may be started again. What is left is that one was lost.
failed= again= lost=
for ((i = 0; i < processes; i++)); do
  pid=${pids[i]} status=0
  while :; do
    wait "$pid" && status=0 || status=$?
    kill -0 "$pid" 2>/dev/null || break  # else a signal ended the wait, not the process
  done
  case $status in 0) ;; 75) again=1 ;; 69|134|137|139|143) lost=1 ;; *) failed=${failed:-$status} ;; esac
  # It could not say so itself, nor could the others where it was the first one, by which they are joined.
  case $status in 137|139|143) say "process $i of $processes was killed, by signal $((status - 128))" ;; esac
done
[ -z "$failed" ] || exit "$failed"
[ -z "$lost" ] || exit 69
[ -z "$again" ] || exit 75
