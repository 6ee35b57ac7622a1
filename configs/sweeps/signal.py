"""What becomes of a model's AUC as what it may read fades? D_race, small, on phantoms of texture signal 1, 0.5 and 0.

    bash launch/local.sh python -m cxr_jax.main --config=configs/sweeps/signal.py
        three runs in runs/signal/full, half and none, each of about a minute on one core (38 to 46 seconds once compiled)
    …configs/sweeps/signal.py:half                one of them, in the same folder, as a job of its own
    …configs/sweeps/signal.py --config.seed=1 --workdir=runs/signal-1      all of them with another seed
    bash launch/local.sh python -m cxr_jax.compare runs/signal --html runs/signal.html

The same patients in the same groups are drawn each time, so that differences are paired by image. Macro AUC on 229 test images of
114 patients: .853 (.791 to .891) at full strength, .487 (.433 to .546) at half and .492 (.424 to .557) with none; less than the first
by .366 (.290 to .441) and .360 (.272 to .435). The ceiling is .867 (.802 to .910) at both strengths, since it is that of a reader who
sees what is drawn and not how strongly, and .500 with none. So at half the strength there is as much to be read, and so small a network,
trained for so short a time on so few, is not shown to read any. One seed each: these intervals do not say what another would give.
"""

from configs import race


def get_base():
    return race.get_config("tiny")


def get_diffs():
    return {
        "full": {},
        "half": {"dataset.phantom.signal": 0.5},
        "none": {"dataset.phantom.signal": 0.0},
    }
