"""Training pictures of the video model, and its identity."""

from pathlib import Path

import numpy as np
import skimage.data

from nic.models import store
from nic.models.training.video import in_motion, residual_pictures


def test_residual_pictures_are_what_prediction_leaves() -> None:
    """Around mid-grey, and with much less in them than the frames of a pan, which prediction follows."""
    photo = skimage.data.astronaut()
    clip = np.stack([photo[20 : 20 + 130, 100 + 2 * i : 100 + 2 * i + 200] for i in range(5)])
    pictures = list(residual_pictures(store.load(store.VIDEO), clip))
    assert [picture.shape for picture in pictures] == [(128, 192, 3)] * 4
    for picture in pictures:
        assert picture.dtype == np.uint8 and abs(picture.mean() - 127.5) < 6
        assert picture.std() < 0.5 * clip.std()


def test_photographs_in_motion_move_a_little_and_differ_by_seed() -> None:
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    clip = in_motion(photos, 1)
    assert clip.dtype == np.uint8 and clip.shape == (17, 320, 320, 3)
    steps = [np.abs(a.astype(float) - b).mean() for a, b in zip(clip, clip[1:], strict=False)]
    far = np.abs(clip[0].astype(float) - clip[-1]).mean()
    assert 0 < min(steps) and max(steps) < far and clip[0].std() > 20
    assert (clip == in_motion(photos, 1)).all() and (clip != in_motion(photos, 2)).any()


def test_the_id_of_a_video_model_covers_its_synthesis(tmp_path: Path) -> None:
    tensors = {name: np.full(3, i) for i, name in enumerate(("prior.a", "codebooks.b", "synthesis.c", "analysis.d"))}
    for name in tensors:
        changed = tensors | {name: tensors[name] + 1}
        same = [store.model_id(tensors, mode) == store.model_id(changed, mode) for mode in ("fidelity", store.VIDEO)]
        assert same == [name[0] in "sa", name[0] == "a"]


def test_shipped_model_is_of_mode_video() -> None:
    entry = store.find(store.VIDEO)
    assert entry["mode"] == store.VIDEO and entry["bytes"] < 10e6
    assert store.load(bytes.fromhex(entry["id"])).config.lambda_min == 0.0001
