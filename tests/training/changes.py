"""Changes of a configuration."""

from copy import deepcopy

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf


def changed(cfg: DictConfig, setting: str) -> DictConfig:
    """A copy of a configuration with one setting changed; faster than composing it by Hydra."""
    override = OverridesParser.create().parse_override(setting)
    cfg = deepcopy(cfg)
    OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg
