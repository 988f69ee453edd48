"""Configuration: every key with its default, YAML files, overrides, catalogs and dialects. Imports no torch."""

from .defaults import cfg, get_defaults
from .loader import diff, explicit_keys, load_config, resolved
from .node import CfgNode

__all__ = ["CfgNode", "cfg", "diff", "explicit_keys", "get_defaults", "load_config", "resolved"]
