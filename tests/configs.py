"""Compose the config of a verb, as the command line does."""

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2robot.core.files import configs_dir


def composed(verb: str, *words: str) -> DictConfig:
    HydraConfig.instance().cfg = None  # of a verb that an earlier test ran in this process
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return compose(verb, list(words))
