import pytest

from italic.errors import SettingError
from italic.keys import refuse_unknown


@pytest.mark.parametrize(
    "words",
    [
        ["steps=8", "model=lattice", "model.features=8", "datamodule/images=photos", "-m"],
        ["experiment/ablation=raster", "hydra.run.dir=x=y", "hydra/launcher=joblib", "debug=fast"],
        ["+more=1", "~model.leak", "--config-dir", "mine/conf=1", "weights=a.safetensors"],
    ],
)
def test_known_keys_and_groups_pass(words: list[str]) -> None:
    refuse_unknown(words, "TrainConfig")


def test_unknown_keys_are_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(SettingError, match="unknown key modle: did you mean model"):
        refuse_unknown(["steps=8", "modle=lattice"], "TrainConfig")
    with pytest.raises(SettingError, match="unknown key nosuch"):
        refuse_unknown(["nosuch=1"], "EvaluateConfig")
    with pytest.raises(SettingError, match="unknown key resume"):
        refuse_unknown(["resume=RUN"], "EvaluateConfig")
