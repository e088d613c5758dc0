"""Models on a device: what they code, and how they are loaded onto it."""

import numpy as np
import pytest
import torch

import italic
from italic.coding.model_files import loading
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, ModelError
from tests.compressor.examples import smooth

pytestmark = pytest.mark.usefixtures("installed")


def test_a_model_codes_images_and_takes_a_device(model: Model) -> None:
    images = smooth(2, 16, 16)
    for steps in (None, 3):
        coded = model.encode(images, steps)
        assert np.array_equal(model.decode(coded, 16, 16, steps), images)
    assert italic.load_model("tiny", device="cpu") is italic.load_model("tiny")
    assert italic.load_model(model, device=torch.device("cpu")) is model
    for device in ("nothing", "cuda:99", "meta", 1.5):
        with pytest.raises(ModelError, match=r"there is no device .*: expected a device"):
            italic.load_model("tiny", device=device)  # type: ignore[arg-type]
    for steps in (0, "2", 2.0, 257):
        with pytest.raises(ValueError, match="steps must be"):
            model.encode(images, steps)
        with pytest.raises(ValueError, match="steps must be"):
            model.decode(coded, 16, 16, steps)
    for wrong in (None, images[0], images[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            model.encode(wrong)
    for wrong in (None, [], [b"abc"]):
        with pytest.raises(ValueError, match="expected results of encode"):
            model.decode(wrong, 16, 16)
    for height in (0, -1, 16.0):
        with pytest.raises(ValueError, match="height must be"):
            model.decode(coded, height, 16)


def test_models_are_loaded_onto_the_device_of_the_context(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device "meta" stands for a GPU."""
    monkeypatch.setattr(loading, "_checked", torch.device)
    with loading.on_device("meta"):
        for found in (load_model("tiny"), load_model(model), loading.model_of(model.hash)):
            assert found.device.type == "meta" and found.hash == model.hash
        assert load_model("tiny") is load_model("tiny")
        assert load_model("tiny", "cpu").device.type == "cpu"
        assert load_model("tiny").device.type == "meta"
    assert load_model("tiny").device.type == load_model(model).device.type == "cpu"
