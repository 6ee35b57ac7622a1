#!/usr/bin/env bash
# Builds a data set's TFRecords with Apache Beam: the stage `prepare` of a run, and nothing else of it.
#
#   bash launch/beam.sh direct PROCESSES -- --config=configs/race.py:mimic --config.dataset.raw_dir=DIR
#   bash launch/beam.sh flink HOST:8081 -- …
#   bash launch/beam.sh spark spark://HOST:7077 -- …
#   bash launch/beam.sh dataflow PROJECT REGION gs://BUCKET/FOLDER IMAGE -- …       IMAGE: of workers, with this package in it
#
# Workers read raw_dir and write data_dir, which lie on a file system that all of them have mounted. docs/beam.md says which of it was tried.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 1; }

runner=${1:-} words=()
[ $# -gt 0 ] && shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1"); shift; done
[ "${1:-}" = -- ] && [ $# -gt 1 ] || usage
shift
needs() { [ "${#words[@]}" = "$1" ] || usage; }
case $runner in
  direct) needs 1; name=DirectRunner options="'--direct_running_mode=multi_processing','--direct_num_workers=${words[0]}'" ;;
  # LOOPBACK: workers are started beside this command, and have its package and file systems.
  flink) needs 1; name=FlinkRunner options="'--flink_master=${words[0]}','--environment_type=LOOPBACK'" ;;
  spark) needs 1; name=SparkRunner options="'--spark_master_url=${words[0]}','--environment_type=LOOPBACK'" ;;
  dataflow)
    needs 4
    name=DataflowRunner
    options="'--project=${words[0]}','--region=${words[1]}','--temp_location=${words[2]}','--sdk_container_image=${words[3]}'"
    ;;
  *) usage ;;
esac
exec bash "$root/launch/local.sh" python -m cxr_jax.main "$@" "--config.stages=('prepare',)" \
  "--config.dataset.beam_runner=$name" "--config.dataset.beam_options=($options,)"
