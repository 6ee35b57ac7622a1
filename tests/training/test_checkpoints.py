import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import mesh as meshes
from cxr_jax.tables import Target, UserError
from cxr_jax.training import checkpoints
from cxr_jax.training.checkpoints import Checkpoints, ModelDescription

DESCRIPTION = ModelDescription({"growth": 32, "blocks": (6, 12), "stem_constant": False}, {"race": Target("multiclass", ("a", "b"))}, 64)


def state(step: int) -> dict:
    return {"w": jnp.arange(6.0).reshape(2, 3) * step, "step": jnp.asarray(step, jnp.int32)}


def like(mesh):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh)), state(0))


def test_the_last_k_and_the_best_are_kept_and_come_back_where_they_are_wanted(tmp_path):
    with Checkpoints(tmp_path, DESCRIPTION, keep=2) as kept:
        assert kept.restore_last(like(meshes.data_mesh())) is None
        for step in (1, 2, 3, 4):
            kept.save("last", step, state(step))
            if step in (1, 2):
                kept.save("best", step, state(step))
    assert sorted(p.name for p in (tmp_path / "last").iterdir() if p.name.isdigit()) == ["3", "4"]
    assert [p.name for p in (tmp_path / "best").iterdir() if p.name.isdigit()] == ["2"]
    mesh = meshes.data_mesh()
    with Checkpoints(tmp_path, DESCRIPTION, keep=2) as kept:
        restored = kept.restore_last(like(mesh))
    np.testing.assert_array_equal(restored["w"], state(4)["w"])
    assert restored["w"].sharding == meshes.replicated(mesh)
    best = checkpoints.restore(tmp_path, "best", like(mesh))
    assert int(best["step"]) == 2


def test_what_is_saved_is_the_state_at_the_call_whatever_is_donated_after(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    kept_state = jax.tree.map(lambda x: jnp.array(x, copy=True), {"w": jnp.ones(1 << 20)})
    with Checkpoints(tmp_path, DESCRIPTION, keep=1) as kept:
        kept.save("last", 1, kept_state)
        overwrite(kept_state)
    restored = checkpoints.restore(tmp_path, "last", {"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=meshes.replicated(meshes.data_mesh()))})
    np.testing.assert_array_equal(restored["w"], 1)


# Orbax gives up at the first part that it cannot read and closes its event loop; TensorStore's word on the other parts may
# come after that, in a thread of its own. We wait for it, so that it falls into this test and not into the next.
@pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")
def test_a_state_that_is_torn_gives_way_to_the_one_before(tmp_path, caplog):
    with Checkpoints(tmp_path, DESCRIPTION, keep=3) as kept:
        for step in (1, 2):
            kept.save("last", step, state(step))
    for path in (tmp_path / "last" / "2").rglob("*"):
        if path.is_file() and "_METADATA" not in path.name:
            path.write_bytes(b"")
    with Checkpoints(tmp_path, DESCRIPTION, keep=3) as kept:
        restored = kept.restore_last(like(meshes.data_mesh()))
        kept.save("last", 2, state(20))  # the step is done again, and its state must be kept
    assert int(restored["step"]) == 1
    assert "cannot be read" in caplog.text
    assert int(checkpoints.restore(tmp_path, "last", like(meshes.data_mesh()))["step"]) == 20
    assert (tmp_path / "unreadable" / "2").is_dir()
    time.sleep(0.5)


def test_where_no_state_can_be_read_nothing_is_thrown_away(tmp_path):
    with Checkpoints(tmp_path, DESCRIPTION, keep=3) as kept:
        for step in (1, 2):
            kept.save("last", step, state(step))
    more = {**like(meshes.data_mesh()), "new": like(meshes.data_mesh())["step"]}  # as a newer version might ask for
    with Checkpoints(tmp_path, DESCRIPTION, keep=3) as kept:
        with pytest.raises(UserError, match="none of 2 checkpoints can be read .step 2: .*remove"):
            kept.restore_last(more)
        assert int(kept.restore_last(like(meshes.data_mesh()))["step"]) == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("UNKNOWN: Error writing: [OS error 28: ENOSPC No space left on device]")]
)
def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    with Checkpoints(tmp_path, DESCRIPTION, keep=1) as kept:
        monkeypatch.setattr(kept._managers["last"], "save", full)
        with pytest.raises(UserError, match="no space left on the disk; free some"):
            kept.save("last", 1, state(1))


def test_parts_of_a_state_can_be_had_alone(tmp_path):
    with Checkpoints(tmp_path, DESCRIPTION, keep=1) as kept:
        kept.save("best", 3, state(3))
    found = checkpoints.restore(tmp_path, "best", {"w": like(meshes.data_mesh())["w"]})
    assert found.keys() == {"w"}
    np.testing.assert_array_equal(found["w"], state(3)["w"])


def test_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path, DESCRIPTION, keep=1):
        pass
    other = ModelDescription({**DESCRIPTION.model, "growth": 12}, DESCRIPTION.targets, 64)
    with pytest.raises(UserError, match="another model .model is"):
        Checkpoints(tmp_path, other, keep=1)
    assert ModelDescription.read(tmp_path).as_json() == json.loads(json.dumps(DESCRIPTION.as_json()))


def test_no_checkpoint_and_one_that_does_not_fit_are_told(tmp_path):
    with pytest.raises(UserError, match="no model.json"):
        ModelDescription.read(tmp_path)
    with pytest.raises(UserError, match="holds no 'best' checkpoint"):
        checkpoints.restore(tmp_path, "best", like(meshes.data_mesh()))
    with Checkpoints(tmp_path, DESCRIPTION, keep=1) as kept:
        kept.save("best", 1, state(1))
    wrong = {"w": jax.ShapeDtypeStruct((5, 5), jnp.float32, sharding=meshes.replicated(meshes.data_mesh()))}
    with pytest.raises(UserError, match="cannot be read, or is of another model"):
        checkpoints.restore(tmp_path, "best", wrong)
    (tmp_path / "model.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="model.json: lacks 'targets'"):
        ModelDescription.read(tmp_path)
