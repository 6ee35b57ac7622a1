"""Whether maps of where a network looks may be believed, and how many patients their means are of: figures of `mechanism.maps` with their intervals.

`audit` gives, for every target, class and method, rows of

    figure      similarity_noise, similarity_randomised, similarity_shuffled: mean over patients of a map's rank correlation with the map of the same image with unseen noise; of
                the network with its weights mixed up; of one trained on shuffled labels. changed_randomised, changed_shuffled: either less similarity_noise, of the same images:
                below 0 where the map changes by more than for nothing. area: of deletion, above 0 where the map is faithful. incompleteness: of integrated gradients, mean
                absolute error of their sum by the mean absolute sum that they should have, without an interval
    target, class, method, value, low, high, level, n_patients, reason

Intervals are Student's over patients, who have one image each. Where fewer than `min_patients` patients were looked at nothing is told, of data that are not open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

KEYS = ("figure", "target", "class", "method", "value", "low", "high", "level", "n_patients", "reason")


def audit(arrays: Mapping[str, np.ndarray], settings, open_data: bool) -> list[dict[str, Any]]:
    """arrays: by 'TARGET\\nCLASS\\nMETHOD\\nPART' what `mechanism.maps.look` gives, PART being randomised, shuffled, noise, area or incompleteness. settings: the config's `audit` section."""
    rows = []
    anew = any(np.isfinite(np.asarray(values, np.float64)).any() for key, values in arrays.items() if key.endswith("\nshuffled"))
    for target, name, method in dict.fromkeys(tuple(key.split("\n")[:3]) for key in arrays if key.count("\n") == 3):
        of = {part: np.asarray(arrays[f"{target}\n{name}\n{method}\n{part}"], np.float64) for part in ("noise", "randomised", "shuffled", "area")}
        figures = {
            "similarity_noise": of["noise"], "similarity_randomised": of["randomised"], "similarity_shuffled": of["shuffled"],
            "changed_randomised": of["randomised"] - of["noise"], "changed_shuffled": of["shuffled"] - of["noise"], "area": of["area"],
        }  # fmt: skip
        for figure, values in figures.items():
            rows.append({"figure": figure, "target": target, "class": name, "method": method} | _mean(values, settings, open_data, "shuffled" in figure and not anew))
        apart = arrays.get(f"{target}\n{name}\n{method}\nincompleteness")
        if apart is not None:
            told = _mean(of["noise"], settings, open_data, False)
            should = np.abs(apart[1]).mean()
            value = float(np.abs(apart[0]).mean() / should) if should > 0 and told["n_patients"] is not None else None
            rows.append({"figure": "incompleteness", "target": target, "class": name, "method": method} | told | {"value": value, "low": None, "high": None, "reason": told["reason"] if value is None else "no interval: it is counted"})
    return [{key: row[key] for key in KEYS} for row in rows]


def _mean(values: np.ndarray, settings, open_data: bool, no_network: bool) -> dict[str, Any]:
    """value, low, high, level, n_patients and reason of a mean over patients."""
    known = values[~np.isnan(values)]
    row: dict[str, Any] = {"value": None, "low": None, "high": None, "level": float(settings.level), "n_patients": len(known), "reason": None}
    if not len(known):
        none = "no network was trained on shuffled labels (config.mechanism.maps.shuffled_labels)" if no_network else "no image has such a map"
        return row | {"reason": none}
    if len(known) < settings.min_patients and not open_data:
        return row | {"n_patients": None, "reason": f"fewer than {settings.min_patients} patients"}
    row["value"] = float(known.mean())
    if len(known) < 2:
        return row | {"reason": "no interval: one patient"}
    half = float(stats.t.ppf(0.5 + settings.level / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return row | {"low": row["value"] - half, "high": row["value"] + half}
