"""Config keys, with their defaults, and the reading of YAML files."""

from panoptic_ext.config.keys import add_keys, add_panoptic_ext_config

__all__ = ["add_keys", "add_panoptic_ext_config"]
