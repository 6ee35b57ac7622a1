import signal
import threading
import time
import weakref

import numpy as np
import pandas as pd
import pytest

from configs import base
from cxr_jax.data import cohorts, datasets, order, pipeline
from cxr_jax.tables import UserError
from tests.data import tiny

WHOLE = dict(host_cache_gib=1.0, block_images=1024)
# Two windows of 3 blocks of 8 pictures of 144 bytes.
STREAMED = dict(host_cache_gib=2 * 3 * 8 * 144 / 2**30, block_images=8)


@pytest.fixture(scope="module")
def large(tiny_datasets):
    """The data set of 203 images in two stored splits, and its cohort."""
    dataset = tiny_datasets("large")
    config = base.get_config().dataset
    config.views = ()
    return dataset, cohorts.select(dataset.keys, dataset.findings, dataset.races, config).table


@pytest.fixture(params=[WHOLE, STREAMED], ids=["whole", "streamed"])
def source(request, large):
    source = pipeline.Source(*large, "train", **request.param)
    assert source.cached == (request.param is WHOLE)
    return source


def first_rows(dataset, cohort, n):
    """A cohort of n training rows, spread over the stored records."""
    table = cohort.iloc[np.linspace(0, len(cohort) - 1, n).astype(int)].reset_index(drop=True)
    return table.assign(split="train")


def rows(batches):
    return np.concatenate([batch["index"][batch["mask"]] for batch in batches])


def assert_same(one, two):
    one, two = list(one), list(two)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        for name in ("image", "mask", "index"):
            np.testing.assert_array_equal(a[name], b[name])


def assert_pictures(batches, cohort):
    ids = cohort["image_id"].to_numpy()
    for batch in batches:
        assert batch["image"].dtype == np.uint8 and batch["index"].dtype == np.int32 and batch["mask"].dtype == bool
        for image, masked, index in zip(batch["image"], batch["mask"], batch["index"], strict=True):
            assert masked == (index >= 0)
            np.testing.assert_array_equal(image, tiny.picture(int(ids[index][1:])) if masked else np.zeros_like(image))


# ---- batches -------------------------------------------------------------------------------------


def test_13_images_at_batch_8_give_13_rows(large):
    dataset, cohort = large
    source = pipeline.Source(dataset, first_rows(dataset, cohort, 13), "train", **WHOLE)
    assert len(source) == 13 and source.steps_per_epoch(8) == 2
    for batches in (list(source.ordered(8)), list(source.batches(0, 0, 0, 8))):
        assert [len(b["mask"]) for b in batches] == [8, 8]
        assert [b["mask"].sum() for b in batches] == [8, 5]
        assert sorted(rows(batches)) == list(range(13))
        assert_pictures(batches, first_rows(dataset, cohort, 13))


def test_batches_follow_the_stated_order_and_hold_the_right_pictures(source, large):
    batches = list(source.batches(seed=1, epoch=2, start_step=0, batch_size=16))
    assert_pictures(batches, large[1])
    if source.cached:
        visited = order.shard_batches(len(source), 1, 2, 16, shards=1).ravel()[: len(source)]
    else:
        visited = np.concatenate(order.block_order(len(source), 1, 2, block=8, window_blocks=3))
    np.testing.assert_array_equal(rows(batches), source.index[visited])


def test_evaluation_is_in_stored_order(source, large):
    batches = list(source.ordered(10))
    assert_pictures(batches, large[1])
    np.testing.assert_array_equal(rows(batches), np.flatnonzero(large[1]["split"] == "train"))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(source, processes):
    for epoch in (0, 1):
        shares = [list(source.batches(0, epoch, 0, 8, p, processes)) for p in range(processes)]
        joined = [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shares, strict=True)
        ]
        assert_same(joined, source.batches(0, epoch, 0, 8))
    joined = [list(source.ordered(8, p, processes)) for p in range(processes)]
    assert sorted(np.concatenate([rows(part) for part in joined])) == list(source.index)
    assert len({len(part) for part in joined}) == 1


def test_resumed_at_any_step_the_batches_are_the_same(source):
    batches = list(source.batches(4, 1, 0, 8))
    for step in (0, 1, 7, len(batches) - 1):
        assert_same(batches[step:], source.batches(4, 1, step, 8))
    assert list(source.batches(4, 1, len(batches), 8)) == []


def test_epochs_and_seeds_differ_and_each_visits_every_image_once(source):
    seen = [tuple(rows(source.batches(seed, epoch, 0, 8))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(seen)) == 4
    assert all(sorted(order) == list(source.index) for order in seen)


def test_windows_smaller_than_a_batch(large):
    source = pipeline.Source(*large, "train", host_cache_gib=0.0, block_images=3)
    assert not source.cached
    batches = list(source.batches(0, 0, 0, 16))
    assert_same(source.batches(0, 0, 2, 16), batches[2:])
    assert_pictures(batches, large[1])
    assert sorted(rows(batches)) == list(source.index)


def test_batch_that_processes_cannot_share(source):
    with pytest.raises(ValueError, match="process 0 of 3 cannot share a batch of 8"):
        source.batches(0, 0, 0, 8, 0, 3)


def test_wide_gaps_are_jumped_over(large, monkeypatch):
    monkeypatch.setattr(pipeline, "_GAP", 3)
    table = large[1].assign(split="train").iloc[[0, 1, 9, 12, 16, 40, 149, 150, 151, 160, 202]]
    source = pipeline.Source(large[0], table, "train", **WHOLE)
    assert_pictures(source.ordered(4), table)


def test_pictures_equal_those_the_builder_decodes(large):
    dataset, cohort = large
    source = pipeline.Source(dataset, cohort.assign(split="test"), "test", **WHOLE)
    mine = np.concatenate([b["image"][b["mask"]] for b in source.ordered(50)])
    theirs = [
        example["image"]
        for split in dataset.info.splits
        for example in dataset.builder.as_dataset(split=split, read_config=datasets.STORED_ORDER).as_numpy_iterator()
    ]
    np.testing.assert_array_equal(mine, theirs)


def test_images_are_decoded_once(large, monkeypatch):
    source = pipeline.Source(*large, "train", **WHOLE)
    read, calls = source._read, []
    monkeypatch.setattr(source, "_read", lambda *a: calls.append(1) or read(*a))
    for _ in range(2):
        list(source.ordered(8)), list(source.batches(0, 1, 0, 8))
    assert len(calls) == 1


def test_two_windows_at_most_are_in_memory(large, monkeypatch):
    source = pipeline.Source(*large, "train", **STREAMED)
    read, windows, alive = source._read, [], []

    def watched(*arguments):
        for images in read(*arguments):
            windows.append(weakref.ref(images))
            alive.append(sum(w() is not None for w in windows))
            yield images
            del images

    monkeypatch.setattr(source, "_read", watched)
    batches = source.batches(0, 0, 0, 4)
    next(batches)  # what is gathered ahead lies in the first window still, and the second is read meanwhile: not by chance, but always
    until = time.monotonic() + 60
    while len(windows) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    list(batches)
    assert len(windows) > 3 and max(alive) == 2


def test_memory_is_shared_by_the_splits(large):
    sizes = large[1]["split"].value_counts()
    config = base.get_config().dataset
    picture_gib = 144 / 2**30
    config.block_images = 4

    def given(images):
        config.host_cache_gib = images * picture_gib
        return pipeline.sources(*large, config)

    assert all(s.cached for s in given(203).values())
    some = given(float(sizes["train"] + sizes["validation"]))
    assert [some[s].cached for s in ("train", "validation", "test")] == [True, True, False]
    some = given(sizes["train"] - 1.0)
    assert not some["train"].cached and some["validation"].cached
    assert sum(s.gib for s in some.values() if s.cached or s is some["train"]) <= config.host_cache_gib
    assert sorted(np.concatenate([rows(s.ordered(8)) for s in some.values()])) == list(range(203))


# ---- threads -------------------------------------------------------------------------------------


def readers():
    return [t for t in threading.enumerate() if t.name == "cxr_jax-ahead"]


def test_threads_end_with_the_iterator(source):
    batches = source.batches(0, 0, 0, 8)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()
    list(source.batches(0, 0, 0, 8))
    assert not readers()
    source.batches(0, 0, 0, 8)  # never begun
    assert not readers()


def test_errors_in_a_thread_reach_the_one_who_waits(tmp_path):
    dataset = datasets.prepare(tiny.config(tmp_path))
    cohort = dataset.keys.assign(split="train")
    (path,) = dataset.folder.glob("*tfrecord*")
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    for fields in (WHOLE, STREAMED):
        with pytest.raises(UserError, match="records are damaged"):
            list(pipeline.Source(dataset, cohort, "train", **fields).batches(0, 0, 0, 8))
    assert not readers()


def test_no_more_is_read_ahead_than_stated():
    made, stop = [], threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            yield i

    ahead = pipeline._ahead(items(), 3, stop)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    ahead.close()
    assert stop.is_set() and made == [0, 1, 2, 3]


def test_a_reader_asks_between_chunks_whether_anybody_still_waits(large, monkeypatch):
    monkeypatch.setattr(pipeline, "_CHUNK", 1)
    source = pipeline.Source(*large, "train", **WHOLE)
    stop = threading.Event()
    stop.set()
    with pytest.raises(pipeline._Stopped):
        source._whole(stop)
    assert_pictures(source.ordered(8), large[1])


class Interrupted(BaseException):
    """Ctrl-C, under a name that pytest leaves to us."""


def test_an_interrupt_ends_the_threads_while_the_first_window_is_read(source, monkeypatch):
    def endless(self, windows, stop):
        stop.wait(60)
        raise pipeline._Stopped
        yield

    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(pipeline.Source, "_read", endless)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        # Again after 20 s, or a deadlock would hold up the tests for good.
        signal.setitimer(signal.ITIMER_REAL, 0.3, 20)
        with pytest.raises(Interrupted):
            next(source.ordered(8))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert not readers()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_misuse_is_said(large):
    dataset, cohort = large
    with pytest.raises(UserError, match="split 'validation' of the cohort holds no image"):
        pipeline.Source(dataset, cohort[cohort["split"] == "train"], "validation", **WHOLE)
    with pytest.raises(ValueError, match="stored order"):
        pipeline.Source(dataset, cohort.iloc[::-1], "train", **WHOLE)
    assert isinstance(cohort, pd.DataFrame)


@pytest.mark.parametrize("gib", [1.0, 1e-9])
def test_rows_that_are_drawn_by_weights_come_with_their_images(phantom, gib):
    """Held whole, and streamed in blocks; the same images as in order, some of them several times, shared out over processes alike."""
    dataset, cohort = phantom
    source = pipeline.Source(dataset, cohort.table, "train", host_cache_gib=gib, block_images=16)
    assert source.cached == (gib == 1.0)
    plain = {int(i): image for batch in source.ordered(16) for i, image, real in zip(batch["index"], batch["image"], batch["mask"]) if real}
    source.draw = np.random.default_rng(0).gamma(0.5, size=len(source))
    batches = list(source.batches(0, 0, 0, 16))
    index = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    drawn = order.resampled(source.draw, 0, 0)
    np.testing.assert_array_equal(np.sort(index), source.index[drawn])
    assert len(index) == len(source) > len(set(index)) and not np.array_equal(index, np.sort(index))
    for batch in batches:
        for i, image in zip(batch["index"][batch["mask"]], batch["image"][batch["mask"]]):
            np.testing.assert_array_equal(image, plain[int(i)])
    halves = [list(source.batches(0, 0, 2, 16, p, 2)) for p in (0, 1)]
    for whole, first, second in zip(batches[2:], *halves, strict=True):
        np.testing.assert_array_equal(whole["index"], np.concatenate([first["index"], second["index"]]))
