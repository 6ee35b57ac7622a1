import numpy as np
import pytest

from cxr_jax.data.order import block_order, resampled, shard_batches, shard_starts

ORDER_OF_8 = [0, 3, 7, 5, 1, 2, 6, 4]  # seed 0, epoch 0, one window
BLOCKED_ORDER_OF_8 = [3, 2, 1, 0, 7, 4, 6, 5]  # seed 5, epoch 7, blocks of 2, 2 a window
SHARDED_BATCHES_OF_8 = [[0, 3, 7, 5], [1, 2, 6, 4]]  # seed 0, epoch 0, batches of 4 over 2 shards


@pytest.mark.parametrize(
    "n, block, window_blocks", [(1, 1, 1), (100, 8, 3), (13, 100, 1), (96, 8, 12), (5, 1, 2)]
)
def test_every_epoch_is_a_permutation_of_its_own(n, block, window_blocks):
    orders = [np.concatenate(block_order(n, s, e, block, window_blocks)) for s in (0, 1, -1) for e in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(n))
    if n >= 13:
        assert len({tuple(order) for order in orders}) == len(orders)
    again = block_order(n, 0, 1, block, window_blocks)
    np.testing.assert_array_equal(np.concatenate(again), orders[1])


def test_blocks_stay_together_and_windows_hold_as_many_as_stated():
    windows = block_order(100, seed=3, epoch=2, block=8, window_blocks=3)
    assert len(windows) == 5  # 13 blocks, 3 a window
    blocks = [set(window // 8) for window in windows]
    assert [len(b) for b in blocks] == [3, 3, 3, 3, 1]
    assert sorted(b for window in blocks for b in window) == list(range(13))
    assert [b for window in blocks for b in sorted(window)] != list(range(13))
    assert any((np.diff(window) < 0).any() for window in windows)


def test_order_is_written_down():
    # A later version that orders otherwise could not resume a run of this one.
    np.testing.assert_array_equal(shard_batches(8, 0, 0, 8, 1)[0], ORDER_OF_8)
    np.testing.assert_array_equal(np.concatenate(block_order(8, 5, 7, 2, 2)), BLOCKED_ORDER_OF_8)
    np.testing.assert_array_equal(shard_batches(8, 0, 0, 4, 2), SHARDED_BATCHES_OF_8)


def test_order_is_uniform():
    places = np.array([shard_batches(6, 0, epoch, 6, 1)[0] for epoch in range(3000)])
    counts = np.array([[np.sum(places[:, p] == row) for row in range(6)] for p in range(6)])
    # chi-square on 25 degrees of freedom: above 60 once in 10,000 times
    assert ((counts - 500) ** 2 / 500).sum() < 60


@pytest.mark.parametrize(("n", "batch_size", "shards"), [(13, 8, 4), (3, 8, 8), (16, 8, 2), (100, 12, 3), (1, 2, 2), (13, 4, 1), (1, 4, 1)])
def test_every_shard_gives_its_share_of_its_own_rows(n, batch_size, shards):
    starts, share = shard_starts(n, shards), batch_size // shards
    assert starts[0] == 0 and starts[-1] == n and np.ptp(np.diff(starts)) <= 1
    epochs = [shard_batches(n, 0, epoch, batch_size, shards) for epoch in (0, 1)]
    for rows in epochs:
        assert rows.shape == (-(-n // batch_size), batch_size)
        assert sorted(rows[rows >= 0]) == list(range(n))
        for s in range(shards):
            own = rows[:, s * share : (s + 1) * share].ravel()
            assert set(own[own >= 0]) == set(range(starts[s], starts[s + 1]))
            assert not (own[:-1][own[1:] >= 0] < 0).any()  # padding stands at the end of each shard
    if n >= 13:
        assert not np.array_equal(*epochs)


def test_shards_that_cannot_share_a_batch():
    with pytest.raises(ValueError, match="3 shards cannot share a batch of 8"):
        shard_batches(13, 0, 0, 8, 3)


# ---- drawn by weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4])
def test_rows_come_as_often_as_they_weigh(shards):
    weight = np.random.default_rng(0).gamma(0.5, size=403)
    starts = shard_starts(403, shards)
    times = np.zeros(403)
    for epoch in range(200):
        drawn = resampled(weight, 3, epoch, shards)
        assert len(drawn) == 403 and not np.array_equal(drawn, resampled(weight, 3, epoch + 1, shards))
        for start, stop in zip(starts, starts[1:]):
            own = drawn[start:stop]
            assert (np.diff(own) >= 0).all() and start <= own[0] and own[-1] < stop
        counts = np.bincount(drawn, minlength=403)
        expected = np.concatenate([weight[a:b] / weight[a:b].mean() for a, b in zip(starts, starts[1:])])
        assert (np.abs(counts - expected) < 1).all()  # rounded down or up
        times += counts
    np.testing.assert_allclose(times / 200, expected, atol=0.15)
    np.testing.assert_array_equal(resampled(weight, 3, 5, shards), resampled(weight, 3, 5, shards))


def test_equal_weights_are_each_row_once_and_a_weight_of_nought_never():
    np.testing.assert_array_equal(resampled(np.full(50, 0.3), 0, 0), np.arange(50))
    assert set(resampled(np.tile([0.0, 1.0], 25), 0, 7)) <= set(range(1, 50, 2))
