"""Environments: how they are made, and those that come with the package, known to Gymnasium once this is imported."""

from seqwm.envs.registered import register

register()
