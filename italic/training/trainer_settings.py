"""The arguments of Lightning's Trainer from the group `trainer` of a configuration."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from italic.errors import check_range
from italic.run_directory import RunError
from italic.training.checkpoints import WholeCheckpoints

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,  # time by part of the training loop
    "advanced": AdvancedProfiler,  # time by Python function
    "pytorch": PyTorchProfiler,  # time by operator, with a trace
}
# Values of `trainer.precision` that keep the weights in float32.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def trainer_settings(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The arguments of the Trainer except loggers and callbacks.

    Raises:
        RunError: the length of the training is zero or unbounded, or the precision, the profiler or
            another setting is not supported.
        SettingError: an interval is below 1, or a limit of the gradients below 0.
    """
    settings = dict(OmegaConf.to_container(cfg.trainer, resolve=True))  # type: ignore[arg-type]
    if str(settings["precision"] or "32") not in PRECISIONS:
        raise RunError(
            f"trainer.precision={settings['precision']} does not keep the weights in float32: "
            "expected 32-true, bf16-mixed or 16-mixed"
        )
    _check_length(settings)
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        check_range(f"trainer.{name}", settings[name], 1)
    check_range("trainer.gradient_clip_val", settings["gradient_clip_val"], 0)
    for name in ("limit_train_batches", "val_check_interval"):
        if settings[name] == 0 or isinstance(settings[name], list):
            raise RunError(
                f"trainer.{name} must be above 0: expected a number of batches, or a fraction; got "
                f"{settings[name]}"
            )
    if settings["fast_dev_run"] or settings["barebones"]:
        raise RunError(
            "trainer.fast_dev_run and trainer.barebones save no checkpoint: use debug=fast instead"
        )
    plugins = settings["plugins"] or []
    if not isinstance(plugins, list):
        raise RunError(f"trainer.plugins must be a list of plugins; got {plugins}")
    settings["plugins"] = [WholeCheckpoints(), *plugins]
    settings["default_root_dir"] = run_dir
    settings["enable_checkpointing"] = False  # `Checkpoints` replaces Lightning's callback
    name = settings["profiler"]
    if name is not None:
        if name not in PROFILERS:
            raise RunError(
                f"unknown profiler '{name}': expected trainer.profiler={'|'.join(PROFILERS)}"
            )
        settings["profiler"] = PROFILERS[name](dirpath=run_dir, filename="profile")
    return settings


def _check_length(settings: dict[str, Any]) -> None:
    """Check that the length of training is positive and bounded.

    The learning rates depend on the length; without a bound they would never decay.
    """
    epochs, steps, time_limit = (settings[f"max_{name}"] for name in ("epochs", "steps", "time"))
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and number != -1 and number < 1:
            raise RunError(
                f"trainer.max_{name} must be 1 or more, or -1 for no limit; got {number}"
            )
        least = settings[f"min_{name}"]
        if least is not None and number is not None and -1 < number < least:
            raise RunError(
                f"trainer.min_{name} must be at most trainer.max_{name}; got {least} and {number}"
            )
    if time_limit is not None and not _seconds(time_limit) > 0:
        raise RunError(
            f"trainer.max_time must be above 0, as DD:HH:MM:SS or {{hours: 1}}; got {time_limit}"
        )
    if epochs == -1 and steps == -1 and time_limit is None:
        raise RunError(
            "training without an end never decays its learning rates: expected one of "
            "trainer.max_epochs, trainer.max_steps and trainer.max_time"
        )


def _seconds(time_limit: Any) -> float:
    """Seconds of a time limit, a text or a mapping of units; 0 if it is invalid."""
    if isinstance(time_limit, str | dict):
        with suppress(ValueError, TypeError, OverflowError, MisconfigurationException):
            return Timer(time_limit).time_remaining() or 0.0
    return 0.0
