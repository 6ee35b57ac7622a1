"""Our gaps against fairlearn's: MetricFrame by group, and its demographic parity and equalised odds."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from configs import base
from cxr_jax.audit import subgroups
from cxr_jax.tables import Predictions, Target

pytestmark = pytest.mark.peers
fairlearn_metrics = pytest.importorskip("fairlearn.metrics")


@pytest.fixture(scope="module")
def audited():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(400), rng.integers(1, 4, 400))
    site = np.array(["a", "b", "c"])[rng.choice(3, 400, p=[0.5, 0.3, 0.2])][who]
    truth = rng.random(len(who)) < 0.35
    score = 1 / (1 + np.exp(-(rng.normal(size=len(who)) + 1.3 * truth - 0.4 * (site == "c"))))
    table = pd.DataFrame({
        "image_id": [f"i{i}" for i in range(len(who))], "patient_id": [f"p{i}" for i in who], "site": site,
        "label_Edema": truth.astype(float), "score_Edema": score,
    })  # fmt: skip
    settings = base.get_config().audit
    settings.update(attributes=("site",), intersections=(), threshold="fixed:0.5", replicates=100)
    rows = subgroups.audit(Predictions(table, {"findings": Target("multilabel", ("Edema",))}), settings)
    return table, [row for row in rows if row["class"] == "Edema"]


def test_rates_by_group_and_their_ranges_are_metric_frame_s(audited):
    table, rows = audited
    called, truth = table["score_Edema"] >= 0.5, table["label_Edema"] == 1
    of_scores = {"auc": sklearn.metrics.roc_auc_score, "average_precision": sklearn.metrics.average_precision_score, "brier": sklearn.metrics.brier_score_loss}
    of_calls = {
        "sensitivity": fairlearn_metrics.true_positive_rate, "specificity": fairlearn_metrics.true_negative_rate,
        "false_negative_rate": fairlearn_metrics.false_negative_rate, "false_positive_rate": fairlearn_metrics.false_positive_rate,
        "called": fairlearn_metrics.selection_rate, "ppv": sklearn.metrics.precision_score, "f1": sklearn.metrics.f1_score,
        "npv": lambda y, x: sklearn.metrics.precision_score(~y, ~x), "accuracy": sklearn.metrics.accuracy_score,
    }  # fmt: skip
    for functions, said in ((of_scores, table["score_Edema"]), (of_calls, called)):
        frame = fairlearn_metrics.MetricFrame(metrics=functions, y_true=truth, y_pred=said, sensitive_features=table["site"])
        for metric in functions:
            (whole,) = subgroups.select(rows, metric=metric, attribute="all")
            assert whole["value"] == pytest.approx(frame.overall[metric], abs=1e-12)
            found = {row["group"]: row["value"] for row in subgroups.select(rows, metric=metric, attribute="site")}
            assert found == pytest.approx(frame.by_group[metric].to_dict(), abs=1e-12)
            for row in subgroups.select(rows, metric=metric, effect="range"):
                assert row["value"] == pytest.approx(frame.difference()[metric], abs=1e-12)
                assert (row["group"], row["reference"]) == (frame.by_group[metric].idxmax(), frame.by_group[metric].idxmin())


def test_demographic_parity_and_equalised_odds(audited):
    table, rows = audited
    keywords = {"y_true": table["label_Edema"], "y_pred": table["score_Edema"] >= 0.5, "sensitive_features": table["site"]}
    (parity,) = subgroups.select(rows, metric="called", effect="range")
    assert parity["value"] == pytest.approx(fairlearn_metrics.demographic_parity_difference(**keywords), abs=1e-12)
    (odds,) = subgroups.select(rows, metric="equalised_odds", effect="range")
    assert odds["value"] == pytest.approx(fairlearn_metrics.equalized_odds_difference(**keywords), abs=1e-12)
    assert odds["low"] is None and "by chance alone" in odds["reason"]
