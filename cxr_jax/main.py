"""`python -m cxr_jax.main --config=configs/NAME.py[:ARGUMENT] [--workdir=DIR] [--config.field=value …] [--distributed]`

Reads the config, opens the workdir, runs the stages in order. A user's mistake ends in one line and exit status 1.
`--config=configs/sweeps/NAME.py[:RUN]` does so for every run of a sweep, one after another, or for one of them.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Mapping

from absl import flags, logging
from ml_collections import config_flags

from cxr_jax import experiment, processes, sweeps, tables
from cxr_jax.tables import UserError, causes

CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment: a file of configs/, with an argument after a colon.")
flags.FLAGS["config"].parser = sweeps.Parser(flags.FLAGS["config"].parser)
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run. Default: runs/NAME[-ARGUMENT]. Of a sweep: of all its runs' folders.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of this launch, whom JAX is to find; not needed under srun or launch/local.sh, which tell.")


def main(argv: list[str]) -> int:
    """Returns the exit status, one of those that `processes` names."""
    with processes.terminable():
        try:
            ended = _main(argv)
        except processes.Preempted:  # while it was told why it ended
            ended = processes.PREEMPTED, "was told to stop (SIGTERM)"
        processes.hear_no_more()
        return processes.leave(*ended)


def _main(argv: list[str]) -> tuple[int, str]:
    """(exit status, in a few words why it is not 0, for the other processes of the launch)."""
    config, workdir, which = None, None, ""
    try:
        runs = parse(argv)
        processes.join(DISTRIBUTED.value)
        for number, (config, workdir, sweep) in enumerate(runs, 1):
            if sweep:
                print(f"{sweep['name']}: {sweep['run']}{f', {number} of {len(runs)}' if len(runs) > 1 else ''}, in {workdir}")
                which = f"in {sweep['run']!r}: "
            run(config, workdir, shlex.join(["python", "-m", "cxr_jax.main", *argv[1:]]), sweep)
        if len(runs) > 1:
            print(f"to compare them: {shlex.join(['python', '-m', 'cxr_jax.compare', str(workdir.parent)])}")
    except (processes.NotJoined, experiment.UnderWay) as error:
        print(f"error: {error}", file=sys.stderr)
        return processes.LOST, f"failed: {error}"
    except UserError as error:
        return _failed(f"{which}{error}")
    except FloatingPointError as error:
        return _failed(f"{which}training diverged: {error}")
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_carries_on(workdir)}", file=sys.stderr)
        return processes.INTERRUPTED, "was interrupted"
    except processes.Preempted:
        print(f"\ntold to stop (SIGTERM); {_carries_on(workdir)}", file=sys.stderr)
        return processes.PREEMPTED, "was told to stop (SIGTERM)"
    except Exception as error:
        told = _of_the_disk(error, config, workdir) if isinstance(error, OSError) else ""
        if told:
            return _failed(told)
        if processes.count() == 1:
            raise
        traceback.print_exc()
        return processes.FAILED, f"failed ({type(error).__name__})"
    return processes.DONE, ""


def _failed(told: str) -> tuple[int, str]:
    print(f"error: {told}", file=sys.stderr)
    return processes.FAILED, f"failed: {told}"


def _carries_on(workdir: pathlib.Path | None) -> str:
    return f"the same command {'carries on from the last checkpoint' if _in_training(workdir) else 'starts this stage again'}"


def parse(argv: list[str]) -> list[tuple]:
    """(validated config, workdir, what run.json says of its sweep) of every run that the command line asks for, in order.

    One run without a sweep, None, unless `--config` names a sweep. Raises UserError.
    """
    from configs import base

    experiment.check_overrides(argv[1:], base.get_config())
    try:
        rest = flags.FLAGS(argv)[1:]
        config = CONFIG.value
    except (flags.Error, AttributeError, OSError, ValueError, TypeError) as error:
        raise _mistake(error) from error
    if rest:
        raise UserError(f"what is {rest[0]!r}? Only flags are taken; see --help")
    if config is None:
        raise UserError("name an experiment: --config=configs/race.py (others: configs/disease.py, configs/sex.py)")
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such config")
    stem = pathlib.Path(path).stem
    if sweeps.is_sweep(path):
        sweep, folder = sweeps.read(path), pathlib.Path(WORKDIR.value or pathlib.Path("runs") / stem)
        if (folder / "run.json").exists():
            raise UserError(f"{folder}: holds a run; name another folder for those of the sweep with --workdir")
        configs = sweep.configs(config_flags.get_override_values(flags.FLAGS["config"]), argument, folder)
        return [(config, folder / name, sweep.record(name)) for name, config in configs.items()]
    experiment.validate(config)
    workdir = WORKDIR.value or str(pathlib.Path("runs") / "-".join(filter(None, [stem, argument.replace(",", "-")])))
    return [(config, pathlib.Path(workdir), None)]


def run(config, workdir: pathlib.Path, command: str, sweep: Mapping | None = None) -> None:
    """Runs what is not done yet of config.stages, in order; `command` and `sweep` are for the record."""
    from configs import base

    record = experiment.Run(workdir, config, base.get_config(), command)
    if sweep:
        record.record["sweep"] = dict(sweep)
    if record.complete:
        record.settle()
        left = {"report": ("its report", "report.html"), "prepare": ("its cohort", "cohort.html")}
        what, name = next((left[stage] for stage in left if stage in config.stages), ("its files", ""))
        print(f"this run is done ({record.record['ended']}); {what}: {workdir / name}")
        return
    from cxr_jax import mesh, stages

    # Orbax and TFDS warn of their own ways through absl; what a user must know is printed by the stages.
    logging.set_verbosity(logging.FATAL)
    mesh.keep_compiled_programs()
    with record.recording(mesh.describe_devices()):
        for stage in config.stages:
            processes.stop_if_asked()
            if not record.done(stage):
                with record.stage(stage):
                    stages.do(stage, config, record)


def _of_the_disk(error: OSError, config, workdir: pathlib.Path | None) -> str:
    """The one line in an error on a full disk, or on a folder or file that a run makes; "" for any other error."""
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk ({error.filename or 'while writing'}); free some and run the same command again"
    named = error.filename2 or error.filename  # of a file that could not be put in place of another, the latter
    if workdir is None or not isinstance(named, str | os.PathLike):
        return ""
    path = pathlib.Path(os.path.abspath(named))
    if path.suffix == ".partial":  # of a name that only `tables.whole_file` knows
        path = path.parent
    data_dir = config.dataset.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    for folder, field in ((workdir, "--workdir"), (data_dir, "--config.dataset.data_dir")):
        folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
        # What is above the folder counts too: it could not be made, or does not let it be.
        if path.is_relative_to(folder) or folder.is_relative_to(path):
            what = "a link to nothing" if path.is_symlink() and not path.exists() else error.strerror or type(error).__name__
            return f"{path}: {what}; mend that, or name another folder with {field}"
    return ""


def _in_training(workdir: pathlib.Path | None) -> bool:
    """Whether the stage that was running is training, and has left a checkpoint to carry on from."""
    if workdir is None or not (workdir / "run.json").is_file():
        return False
    stage = tables.read_json(workdir / "run.json").get("stages", {}).get("train", {})
    kept = (workdir / "checkpoints" / "last").glob("*")
    return stage.get("status") == "running" and any(path.name.isdigit() for path in kept)


def _mistake(error: BaseException) -> UserError:
    """The one line in an error of the flag parser, which wraps whatever a config file raised."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("cxr_jax.tables.UserError:")), None)
    if told:
        return UserError(told.partition(":")[2].strip())
    return UserError(lines[0] if lines else type(error).__name__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
