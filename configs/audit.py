"""Judge predictions of your own, from any model, in a file made anywhere: every figure by group, each with its interval.

    bash launch/local.sh python -m cxr_jax.main --config=configs/audit.py --config.audit.predictions=FILE
        FILE, a .csv, .csv.gz, .tsv or .parquet table with one row an image, to runs/audit/report.html
    …  --workdir=DIR                                          another folder; each file wants its own
    …  --config.audit.attributes="('race','insurance')"       groups to judge, of columns called so

Columns are found by their names, whatever their case and punctuation, and what was taken for what is printed and in the report:
image (image_id, Path, dicom_id, Image Index), patient (patient_id, subject_id, Patient ID), split (train, validation, test), race,
sex, age and view; scores as score_X, prob_X, p_X, pred_X or X_score; labels as

    classes that exclude one another    one text column whose words are the X: race beside p_white, p_black, p_asian
    findings                            label_X, X_true, y_X, …, or X: Edema of 1, 0 or empty beside Edema_prob
    one finding                         y_true beside y_score

Names that it does not find, or of which two would do:

    …  --config.audit.label=truth --config.audit.scores="('White=out_0','Black=out_1')"
    …  --config.audit.labels="('Edema=oedema',)" --config.audit.scores="('Edema=model3',)"
    …  --config.audit.columns="('patient_id=case','sex=m_f','split=')"     'split=': no column is the split

Without a column of patients each image passes for one, and the report says what that costs. A cell that cannot be is refused by
row, counted from 1 without the header, and column.
"""

from ml_collections import config_dict

from configs import base
from cxr_jax.tables import UserError


def get_config(argument=None):
    if argument:
        raise UserError(f"configs/audit.py takes no argument, not {argument!r}: what is judged is the file of --config.audit.predictions")
    config = base.get_config()
    config.name = "A model of your own"
    config.stages = ("audit", "report")
    config.audit.predictions = config_dict.placeholder(str)  # to be named
    return config
