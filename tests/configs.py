"""Compose the config of a verb, as the command line does."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from s2robot.core.files import configs_dir


def composed(verb: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return compose(verb, list(words))
