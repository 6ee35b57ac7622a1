"""Seconds to find exact nearest neighbours, beside faiss's flat index and scikit-learn's brute force.

    python -m cxr_jax.benchmarks.knn [--database=20000 --queries=4000 --width=1024 --k=15 --rounds=5]

Normal numbers, the same for all, Euclidean distance, from host arrays to host arrays. faiss's index is built and
scikit-learn's model fitted before the clock starts; ours has no such step. faiss searches with as many threads as the
machine has cores and with the block of the database, of those tried once at the start, that suits it best. Its own
OpenBLAS may not know a new processor and then takes slow kernels: OPENBLAS_CORETYPE=SKYLAKEX before the command names
quick ones where there is AVX-512. All take turns in one process. Prints medians and spread over rounds, how many times
our seconds each takes (the median of the ratios of a round), the share of places at which it names the same neighbour,
and the largest relative difference of its distances.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import sklearn.neighbors

from cxr_jax import benchmarks
from cxr_jax.probes import knn

FAISS_BLOCKS = (1024, 4096, 16384)  # rows of the database to a matrix product; 1,024 is its default

Search = Callable[[], tuple[np.ndarray, np.ndarray]]


def searches(database: np.ndarray, queries: np.ndarray, k: int) -> tuple[dict[str, Search], dict[str, str]]:
    """What runs, each giving index and distance [q, k]; and what does not, with the reason."""

    def ours():
        return knn.neighbours(database, queries, k, metric="l2")

    model = sklearn.neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(database)

    def scikit_learn():
        distance, index = model.kneighbors(queries)
        return index, distance

    running: dict[str, Search] = {"ours": ours, "scikit-learn": scikit_learn}
    try:
        import faiss
    except ImportError:
        return running, {"faiss": "not installed (faiss-cpu)"}
    faiss.omp_set_num_threads(os.cpu_count())
    flat = faiss.IndexFlatL2(database.shape[1])
    flat.add(database)

    def faiss_flat():
        square, index = flat.search(queries, k)
        return index, np.sqrt(square)

    def seconds_in_blocks(rows: int) -> float:
        faiss.cvar.distance_compute_blas_database_bs = rows
        return seconds(faiss_flat)[0]

    faiss.cvar.distance_compute_blas_database_bs = min(FAISS_BLOCKS, key=seconds_in_blocks)
    return {**running, "faiss": faiss_flat}, {}


def seconds(search: Search) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    start = time.perf_counter()
    found = search()
    return time.perf_counter() - start, found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cxr_jax.benchmarks.knn")
    parser.add_argument("--database", type=int, default=20_000, help="rows searched")
    parser.add_argument("--queries", type=int, default=4_000, help="rows whose neighbours are sought")
    parser.add_argument("--width", type=int, default=1_024, help="features of a row")
    parser.add_argument("--k", type=int, default=15, help="neighbours of each")
    parser.add_argument("--rounds", type=int, default=5, help="times that each searches")
    asked = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    database = rng.standard_normal((asked.database, asked.width), np.float32)
    queries = rng.standard_normal((asked.queries, asked.width), np.float32)

    running, missing = searches(database, queries, asked.k)
    found = {name: search() for name, search in running.items()}  # and ours compiles
    taken = {name: [] for name in running}
    for _ in range(asked.rounds):
        for name, search in running.items():
            taken[name].append(seconds(search)[0])
    print(benchmarks.machine("jax", "sklearn", "numpy", *(["faiss"] if "faiss" in running else [])))
    print(
        f"{asked.queries:,} queries × {asked.database:,} rows × {asked.width:,}, k={asked.k}, {asked.rounds} rounds,"
        f" ours on {jax.device_count()} {jax.default_backend()} device{'s' if jax.device_count() > 1 else ''}"
    )
    index, distance = found["ours"]
    for name, times in taken.items():
        line = f"  {name}: {np.median(times):.3g} s ({min(times):.3g} to {max(times):.3g})"
        if name != "ours":
            ratio = np.median(np.array(times) / taken["ours"])
            equal = np.mean(found[name][0] == index)
            apart = np.max(np.abs(found[name][1] / distance.astype(np.float64) - 1))
            line += f", {ratio:.2f} times ours; {equal:.4%} of neighbours equal, distances apart by at most {apart:.1e}"
        print(line)
    for name, reason in missing.items():
        print(f"  {name}: {reason}")


if __name__ == "__main__":
    main()
